"""The adapters' gRPC service and its metrics."""

from catena.adapters.handlers.figures import Figures
from catena.adapters.handlers.genai_metrics import ServerMetrics
from catena.adapters.handlers.service import AdaptersHandlers
from catena.adapters.handlers.vllm_gauge import LoraGauge

__all__ = ["AdaptersHandlers", "Figures", "LoraGauge", "ServerMetrics"]
