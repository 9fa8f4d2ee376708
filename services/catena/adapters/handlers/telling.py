"""What a look through the remote registries tells, as it goes out."""

from catena.adapters.core.refs import full_name
from catena.adapters.core.updates import Finding, Told, Transfer
from catena.api.adapters.v1 import adapters_pb2 as pb


def told_to(told: Told) -> pb.CheckUpdatesResponse:
    """One thing that was told."""
    match told:
        case Transfer():
            transfer = pb.Transfer(model=told.model, done_bytes=told.done, total_bytes=told.total)
            return pb.CheckUpdatesResponse(transfer=transfer)
        case Finding():
            return pb.CheckUpdatesResponse(update=_finding_to(told))
        case _:
            trouble = pb.RegistryTrouble(registry=told.registry, code=told.error.code, message=told.error.message)
            return pb.CheckUpdatesResponse(trouble=trouble)


def _finding_to(finding: Finding) -> pb.Update:
    return pb.Update(
        registry=finding.registry,
        model=full_name(finding.base, finding.name, finding.current),
        version=finding.version,
        digest=finding.digest,
        gain=finding.gain,
        state=finding.state,
        reason=finding.reason,
        found_s=finding.at_s,
    )
