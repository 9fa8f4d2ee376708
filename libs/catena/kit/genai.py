"""Our own names for OpenTelemetry's generative-AI attributes.

The conventions are still in development and renamed much in 2026; code uses these names, and only this file follows.
"""

OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_MODEL = "gen_ai.response.model"
RESPONSE_ID = "gen_ai.response.id"
FINISH_REASONS = "gen_ai.response.finish_reasons"
TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
MAX_TOKENS = "gen_ai.request.max_tokens"
TEMPERATURE = "gen_ai.request.temperature"
TOP_P = "gen_ai.request.top_p"
SEED = "gen_ai.request.seed"
STREAM = "gen_ai.request.stream"
CONVERSATION = "gen_ai.conversation.id"
PROMPT_NAME = "gen_ai.prompt.name"
PROMPT_VERSION = "gen_ai.prompt.version"
TOOL = "gen_ai.tool.name"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHE_READ_TOKENS = "gen_ai.usage.cache_read.input_tokens"
CACHE_WRITE_TOKENS = "gen_ai.usage.cache_creation.input_tokens"
REASONING_TOKENS = "gen_ai.usage.reasoning.output_tokens"

CHAT = "chat"
COMPLETION = "text_completion"
EMBEDDINGS = "embeddings"
CLASSIFY = "classify"
PREDICT = "predict"
RETRIEVAL = "retrieval"
EXECUTE_TOOL = "execute_tool"
INVOKE_WORKFLOW = "invoke_workflow"
PLAN = "plan"
SEARCH_MEMORY = "search_memory"
UPSERT_MEMORY = "upsert_memory"

LOCAL_PROVIDER = "catena"


def span_name(operation: str, model: str) -> str:
    """`chat base@adapter:version`: the convention's span name for a call of a model."""
    return f"{operation} {model}"
