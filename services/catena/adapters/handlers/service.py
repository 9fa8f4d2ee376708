"""The adapters' gRPC service: proto in, core call, proto out. The tenant is the caller's, whatever the request says."""

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeAlias

import grpc
from google.protobuf import json_format

from catena.adapters.core import refs
from catena.adapters.core.adapters import Adapters
from catena.adapters.core.asking import Answered, Question
from catena.adapters.core.encoding import Encoded, Encoding
from catena.adapters.core.ports import Engine, Registry
from catena.adapters.core.records import AdapterRecord, BaseProfile, BaseState
from catena.adapters.core.resident import Resident, TierState
from catena.adapters.core.serving import PlainName, Serving
from catena.adapters.core.updates import Updates
from catena.adapters.core.work import Call, Constraint, Message, Piece, Sampling, TokenLogprob, Tool
from catena.adapters.handlers import encoding
from catena.adapters.handlers.figures import Figures
from catena.adapters.handlers.genai_metrics import ServerMetrics
from catena.adapters.handlers.telling import told_to
from catena.api.adapters.v1 import adapters_pb2 as pb
from catena.api.adapters.v1.adapters_pb2_grpc import AdaptersServiceServicer
from catena.api.types.v1 import types_pb2 as types
from catena.kit import genai
from catena.kit.caller import caller
from catena.kit.config import ModelType
from catena.kit.errors import Invalid
from catena.kit.telemetry import span

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
PAGE = 100
MAX_PAGE = 1000


class AdaptersHandlers(AdaptersServiceServicer):
    """`AdaptersService` over `Adapters`."""

    def __init__(
        self,
        adapters: Adapters,
        serving: Serving,
        registry: Registry,
        engine: Engine,
        figures: Figures,
        metrics: ServerMetrics,
        updates: Updates,
    ) -> None:
        """`registry` serves plain listings, `engine` its counters; `figures` and `metrics` count."""
        self._updates = updates
        self._adapters = adapters
        self._serving = serving
        self._registry = registry
        self._engine = engine
        self._figures = figures
        self._metrics = metrics

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> AsyncIterator[pb.GenerateResponse]:
        """Generate and stream."""
        question = question_of(request)
        told = {genai.REQUEST_MODEL: request.model, genai.OPERATION: genai.CHAT, genai.PROVIDER: genai.LOCAL_PROVIDER}
        with (
            span(genai.span_name(genai.CHAT, request.model), told, room="adapters") as here,
            self._metrics.request(request.model, question.sampling.n) as timed,
        ):
            async with aclosing(self._adapters.generate(caller().tenant, question)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Piece):
                        timed.wrote()
                        yield pb.GenerateResponse(deltas=[delta_to(piece)])
                        continue
                    timed.tokens = piece.done.output_tokens
                    here.set_attribute(genai.RESPONSE_MODEL, piece.model)
                    here.set_attribute(genai.INPUT_TOKENS, piece.done.input_tokens)
                    here.set_attribute(genai.OUTPUT_TOKENS, piece.done.output_tokens)
                    self._figures.answered(piece)
                    yield pb.GenerateResponse(done=done_to(piece))

    async def Encode(self, request: pb.EncodeRequest, context: Context) -> pb.EncodeResponse:
        """Texts to vectors."""
        encoded, model = await self._encode(genai.EMBEDDINGS, encoding.encode_of(request), "embedding")
        return encoding.vectors_to(encoded, model)

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:
        """Texts to labels or spans."""
        asked = encoding.classify_of(request)
        encoded, model = await self._encode(genai.CLASSIFY, asked, "classification", "token-classification")
        return encoding.classified_to(encoded, model, asked, request.top)

    async def Predict(self, request: pb.PredictRequest, context: Context) -> pb.PredictResponse:
        """Feature vectors to outputs."""
        encoded, model = await self._encode(genai.PREDICT, encoding.predict_of(request), "prediction")
        return encoding.predicted_to(encoded, model, request.top)

    async def _encode(self, verb: str, asked: Encoding, *kinds: ModelType) -> tuple[Encoded, str]:
        told = {genai.REQUEST_MODEL: asked.base, genai.OPERATION: verb, genai.PROVIDER: genai.LOCAL_PROVIDER}
        with span(genai.span_name(verb, asked.base), told, room="adapters") as here:
            began_s = time.perf_counter()
            encoded, model = await self._adapters.encoders.encode(asked, *kinds)
            here.set_attribute(genai.RESPONSE_MODEL, model)
            here.set_attribute(genai.INPUT_TOKENS, encoded.tokens)
            self._figures.encoded(asked.base, encoded, time.perf_counter() - began_s)
        return encoded, model

    async def Load(self, request: pb.LoadRequest, context: Context) -> pb.LoadResponse:
        """Make something resident."""
        duration_ms, size = await self._adapters.load(caller().tenant, request.model)
        return pb.LoadResponse(duration_ms=duration_ms, bytes=size)

    async def Preload(self, request: pb.PreloadRequest, context: Context) -> pb.PreloadResponse:
        """Load a workflow's set as far as it fits."""
        loaded = await self._adapters.preloading.load_workflow(caller().tenant, request.workflow, request.base)
        return pb.PreloadResponse(
            preloaded=[pb.Preloaded(model=one.model, resident=one.resident, reason=one.reason) for one in loaded]
        )

    async def Unload(self, request: pb.UnloadRequest, context: Context) -> pb.UnloadResponse:
        """Drain and free an adapter."""
        if request.served_name:
            return pb.UnloadResponse(bytes=await self._serving.stop(caller().tenant, request.served_name))
        return pb.UnloadResponse(bytes=await self._adapters.unload(caller().tenant, request.model))

    async def Pin(self, request: pb.PinRequest, context: Context) -> pb.PinResponse:
        """Pin, or let go."""
        await self._adapters.pin(caller().tenant, request.model, pinned=request.pinned)
        return pb.PinResponse()

    async def RegisterAdapter(self, request: pb.RegisterAdapterRequest, context: Context) -> pb.RegisterAdapterResponse:
        """Take an adapter in. Its digest makes repeats harmless, so the request id is not needed."""
        tenant, base = caller().tenant, request.base
        if bool(request.serve_as) != request.HasField("rooted_path"):
            raise Invalid("a name to serve under and a path below adapters.lora_root go together", code="bad_request")
        match request.WhichOneof("source"):
            case "path":
                record = await self._adapters.register(tenant, Path(request.path), base=base, called=request.called)
            case "archive":
                record = await self._adapters.register(tenant, request.archive, base=base)
            case "rooted_path":
                record = await self._serving.serve(
                    tenant, request.serve_as, request.rooted_path, base=base, replace=request.replace
                )
            case _:
                raise Invalid("give a path or an archive of the adapter's folder", code="bad_request")
        return pb.RegisterAdapterResponse(adapter=adapter_to(record))

    async def GetAdapter(self, request: pb.GetAdapterRequest, context: Context) -> pb.GetAdapterResponse:
        """One version."""
        record = await self._adapters.get(caller().tenant, request.model)
        fallbacks = await self._registry.fallbacks(caller().tenant, record.base, record.name)
        return pb.GetAdapterResponse(adapter=adapter_to(record), fallbacks=fallbacks)

    async def ListAdapters(self, request: pb.ListAdaptersRequest, context: Context) -> pb.ListAdaptersResponse:
        """A page of versions."""
        if request.served_only:
            return pb.ListAdaptersResponse(adapters=map(served_to, await self._serving.names(caller().tenant)))
        found, after = await self._registry.page(
            caller().tenant,
            base=request.base,
            task=request.task,
            after=request.page_token,
            size=min(request.page_size or PAGE, MAX_PAGE),
        )
        return pb.ListAdaptersResponse(adapters=map(adapter_to, found), next_page_token=after)

    async def DeleteAdapter(self, request: pb.DeleteAdapterRequest, context: Context) -> pb.DeleteAdapterResponse:
        """Withdraw a version."""
        await self._adapters.withdraw(caller().tenant, request.model, request.reason)
        return pb.DeleteAdapterResponse()

    async def SetAlias(self, request: pb.SetAliasRequest, context: Context) -> pb.SetAliasResponse:
        """Move an alias."""
        record = await self._registry.set_alias(
            caller().tenant,
            request.base,
            request.name,
            refs.check_alias(request.alias),
            version=request.version,
            expected=request.expected_digest.removeprefix("blake3:"),
        )
        return pb.SetAliasResponse(adapter=adapter_to(record) if record is not None else None)

    async def SetFallbacks(self, request: pb.SetFallbacksRequest, context: Context) -> pb.SetFallbacksResponse:
        """Declare who may answer for an adapter."""
        await self._adapters.names.declare(caller().tenant, request.model, request.fallbacks)
        return pb.SetFallbacksResponse()

    async def SelectAdapter(self, request: pb.SelectAdapterRequest, context: Context) -> pb.SelectAdapterResponse:
        """What `base@auto` means for a task."""
        names, tenant = self._adapters.names, caller().tenant
        target = await names.resolve(tenant, f"{request.base}@{refs.AUTO}", request.task)
        found = await names.select(tenant, request.base, request.task)
        return pb.SelectAdapterResponse(
            model=target.wanted.model if target.wanted is not None else request.base,
            served=target.served,
            reason=target.reason,
            candidates=[pb.Candidate(adapter=adapter_to(one.record), accuracy=one.accuracy) for one in found],
        )

    async def RecommendUpdate(self, request: pb.RecommendUpdateRequest, context: Context) -> pb.RecommendUpdateResponse:
        """Whether to move to a newer version."""
        current, update = await self._adapters.names.update(caller().tenant, request.model)
        return pb.RecommendUpdateResponse(
            current=adapter_to(current),
            recommended=adapter_to(update.record) if update.record is not None else None,
            gain=update.gain,
            reason=update.reason,
        )

    async def CheckUpdates(
        self, request: pb.CheckUpdatesRequest, context: Context
    ) -> AsyncIterator[pb.CheckUpdatesResponse]:
        """Ask the remote registries, or tell what they had."""
        tenant = caller().tenant
        if request.known_only:
            for finding in await self._updates.known(tenant, request.model):
                yield told_to(finding)
            return
        async with aclosing(self._updates.look(tenant, pull=request.pull, model=request.model)) as told:
            async for one in told:
                yield told_to(one)

    async def ListProfiles(self, request: pb.ListProfilesRequest, context: Context) -> pb.ListProfilesResponse:
        """The library profiles."""
        listed = await self._adapters.names.profiles(caller().tenant)
        return pb.ListProfilesResponse(
            profiles=[
                pb.Profile(name=one.name, tasks=one.tasks, description=one.description, models=models)
                for one, models in listed
            ],
            bases=map(base_profile_to, self._adapters.base_profiles),
        )

    async def ListBases(self, request: pb.ListBasesRequest, context: Context) -> pb.ListBasesResponse:
        """The bases."""
        bases = self._adapters.bases
        return pb.ListBasesResponse(
            bases=map(base_to, bases.states()), budget_bytes=bases.budget_bytes, used_bytes=bases.used_bytes
        )

    async def AcceptBase(self, request: pb.AcceptBaseRequest, context: Context) -> pb.AcceptBaseResponse:
        """Take a base as it is now."""
        record = await self._adapters.accept_base(request.name, request.digest)
        return pb.AcceptBaseResponse(base=base_to(BaseState(name=record.name, kind=record.kind, record=record)))

    async def GetResidency(self, request: pb.GetResidencyRequest, context: Context) -> pb.GetResidencyResponse:
        """What is resident."""
        residency, counters = self._adapters.residency, await self._engine.counters()
        tiers = await self._adapters.tiers()
        device = tiers[0]
        return pb.GetResidencyResponse(
            residents=map(resident_to, [*residency.residents(), *residency.host.residents()]),
            budget_bytes=device.budget_bytes,
            used_bytes=device.bytes,
            hits=device.tally.hits,
            misses=device.tally.misses,
            evictions=device.tally.evictions,
            forwards=counters.forwards,
            tokens=counters.tokens,
            pressure=self._adapters.pressure.level,
            preloads=residency.preloads,
            tiers=map(tier_to, tiers),
        )


def question_of(request: pb.GenerateRequest) -> Question:
    """What is asked. Raises Invalid for what this engine cannot do: images."""
    asked = request.request
    if any(message.images for message in asked.messages):
        raise Invalid("local models take no images; ask without them", code="images_unsupported")
    return Question(
        model=request.model,
        messages=list(map(message_of, asked.messages)),
        prompt=asked.prompt,
        tools=list(map(tool_of, asked.tools)),
        tool_choice=asked.tool_choice,
        one_call=asked.one_call,
        sampling=sampling_of(asked.sampling),
        draft_model=request.draft_model,
        draft_tokens=request.draft_tokens,
        constraint=constraint_of(asked),
        user=request.context.user_id,
        workflow=request.context.workflow_type,
        task=request.context.task,
    )


def message_of(message: types.ChatMessage) -> Message:
    """One turn."""
    return Message(
        role=message.role,
        content=message.content,
        calls=tuple(Call(id=call.id, name=call.name, arguments=call.arguments) for call in message.tool_calls),
        answers=message.tool_call_id,
    )


def tool_of(tool: types.Tool) -> Tool:
    """A tool that may be called."""
    given = tool.HasField("parameters")
    schema = json_format.MessageToJson(tool.parameters, indent=None, sort_keys=True) if given else ""
    return Tool(name=tool.name, description=tool.description, parameters=schema)


def constraint_of(asked: types.ChatRequest) -> Constraint | None:
    """What the answer must look like; None: free text."""
    schema = asked.json_schema_text
    if not schema and asked.HasField("json_schema"):
        # A Struct has no order of keys; sorted, it is at least the same every time.
        schema = json_format.MessageToJson(asked.json_schema, indent=None, sort_keys=True)
    if not schema and not asked.regex and not asked.choices:
        return None
    return Constraint(json_schema=schema, regex=asked.regex, choices=tuple(asked.choices))


def sampling_of(given: types.Sampling) -> Sampling:
    """How tokens are drawn."""
    return Sampling(
        max_tokens=given.max_tokens,
        temperature=given.temperature if given.HasField("temperature") else None,
        top_p=given.top_p if given.HasField("top_p") else 1.0,
        seed=given.seed if given.HasField("seed") else None,
        stop=tuple(given.stop),
        n=given.n or 1,
        logprobs=given.logprobs,
        top=given.top_logprobs,
        presence_penalty=given.presence_penalty,
        frequency_penalty=given.frequency_penalty,
        top_k=given.top_k,
        min_p=given.min_p,
        repetition_penalty=given.repetition_penalty if given.HasField("repetition_penalty") else 1.0,
        logit_bias=tuple(sorted(given.logit_bias.items())),
        ignore_eos=given.ignore_eos,
        min_tokens=given.min_tokens,
    )


def delta_to(piece: Piece) -> types.Delta:
    """A piece as it goes out."""
    return types.Delta(
        index=piece.index,
        text=piece.text,
        tool_calls=[
            types.ToolCall(id=call.id, name=call.name, arguments=call.arguments, index=piece.first_call + number)
            for number, call in enumerate(piece.calls)
        ],
        logprobs=map(_logprob_to, piece.logprobs),
        finish_reason=piece.finish,
    )


def done_to(answered: Answered) -> pb.GenerateDone:
    """The end as it goes out."""
    done = answered.done
    return pb.GenerateDone(
        usage=types.Usage(
            input_tokens=done.input_tokens,
            output_tokens=done.output_tokens,
            cached_input_tokens=done.cached_tokens,
        ),
        resolved_model=answered.model,
        min_probability=done.min_probability,
        mean_logprob=done.mean_logprob,
        drafted_tokens=done.drafted,
        accepted_tokens=done.accepted,
        first_token_ms=done.first_token_ms,
        draft_usage=types.Usage(input_tokens=done.draft_input_tokens, output_tokens=done.draft_output_tokens),
        served=answered.served,
        reason=answered.reason,
        load_ms=answered.load_ms,
    )


def adapter_to(record: AdapterRecord) -> pb.Adapter:
    """A version as it goes out."""
    return pb.Adapter(
        name=record.name,
        version=record.version,
        digest=record.digest,
        base=record.base,
        base_digest=record.base_digest,
        tasks=record.tasks,
        metrics=dict(record.metrics),
        bytes=record.bytes,
        rank=record.rank,
        training_rows=record.training_rows,
        created_s=record.created_s,
        last_used_s=record.last_used_s,
        uses=record.uses,
        aliases=record.aliases,
        status=record.status,
        signer=record.signer,
    )


def resident_to(resident: Resident) -> pb.Resident:
    """An adapter in memory as it goes out."""
    return pb.Resident(
        model=resident.model,
        digest=resident.weights.adapter,
        tier=resident.tier,
        bytes=resident.bytes,
        pinned=resident.pinned,
        users=resident.users,
        last_used_s=resident.last_used_s,
    )


def tier_to(state: TierState) -> pb.Tier:
    """A tier as it goes out."""
    return pb.Tier(
        name=state.tier,
        adapters=state.adapters,
        bytes=state.bytes,
        budget_bytes=state.budget_bytes,
        hits=state.tally.hits,
        misses=state.tally.misses,
        evictions=state.tally.evictions,
        pinned=state.pinned,
        pinned_bytes=state.pinned_bytes,
    )


def served_to(served: PlainName) -> pb.Adapter:
    """A version with one name that serves it."""
    told = adapter_to(served.record)
    told.served.add(name=served.name, path=served.path, created_s=served.created_s)
    return told


def base_profile_to(profile: BaseProfile) -> pb.BaseProfile:
    """An example of a base as it goes out."""
    return pb.BaseProfile(
        name=profile.name,
        path=profile.path,
        parameters=profile.parameters,
        licence=profile.licence,
        description=profile.description,
    )


def base_to(state: BaseState) -> pb.Base:
    """A base as it goes out; what the engine says of it once resident comes first."""
    record, facts = state.record, state.facts
    if record is None:
        return pb.Base(name=state.name, kind=state.kind, problem=state.problem)
    return pb.Base(
        name=record.name,
        kind=state.kind,
        digest=record.digest,
        architecture=record.architecture,
        parameters=record.parameters,
        bytes=facts.bytes if facts else record.bytes,
        context_tokens=facts.context_tokens if facts else record.context_tokens,
        resident=facts is not None,
        dtype=facts.dtype if facts else record.dtype,
        problem=state.problem,
    )


def _logprob_to(entry: TokenLogprob) -> types.TokenLogprob:
    top = [types.TokenLogprob(token=token, logprob=logprob) for token, logprob in entry.top]
    return types.TokenLogprob(token=entry.token, logprob=entry.logprob, top=top)
