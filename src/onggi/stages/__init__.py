"""The stages: one file a verb, a plain function from a config dataclass and a folder to an artifact.

    from onggi.stages import QuantizeConfig, quantize
    quantize(QuantizeConfig("package:gemma3-270m", text="starter"), Path("w4"))

Here, and only here, the subjects of the rooms below meet. Nothing here imports torch before a
stage runs.
"""

from . import answers as _answers
from . import capture as _capture
from . import distill as _distill
from . import evaluate as _evaluate
from . import finetune as _finetune
from . import pack as _pack
from . import pretrain as _pretrain
from . import quantize as _quantize
from . import rate as _rate
from . import report as _report
from . import reshape as _reshape
from . import text as _text
from . import tokenizer as _tokenizer
from .base import Plan, Stage

VERBS: dict[str, Stage] = {
    module.STAGE.verb: module.STAGE
    for module in (
        _text,
        _tokenizer,
        _pack,
        _reshape,
        _pretrain,
        _finetune,
        _capture,
        _answers,
        _distill,
        _quantize,
        _evaluate,
        _rate,
        _report,
    )
}

from .answers import AnswersConfig, answers  # noqa: E402
from .capture import CaptureConfig, capture  # noqa: E402
from .chat import Answer, ChatConfig, Conversation, chat  # noqa: E402
from .distill import DistillConfig, distill  # noqa: E402
from .evaluate import EvaluateConfig, evaluate  # noqa: E402
from .finetune import FinetuneConfig, finetune  # noqa: E402
from .inspect import inspect  # noqa: E402
from .pack import PackConfig, pack  # noqa: E402
from .pretrain import PretrainConfig, pretrain  # noqa: E402
from .quantize import QuantizeConfig, quantize  # noqa: E402
from .rate import RateConfig, rate  # noqa: E402
from .report import ReportConfig, report  # noqa: E402
from .reshape import ReshapeConfig, reshape  # noqa: E402
from .text import TextConfig, text  # noqa: E402
from .tokenizer import TokenizerConfig, tokenizer  # noqa: E402

__all__ = [
    "VERBS",
    "Answer",
    "AnswersConfig",
    "CaptureConfig",
    "ChatConfig",
    "Conversation",
    "DistillConfig",
    "EvaluateConfig",
    "FinetuneConfig",
    "PackConfig",
    "Plan",
    "PretrainConfig",
    "QuantizeConfig",
    "RateConfig",
    "ReportConfig",
    "ReshapeConfig",
    "Stage",
    "TextConfig",
    "TokenizerConfig",
    "answers",
    "capture",
    "chat",
    "distill",
    "evaluate",
    "finetune",
    "inspect",
    "pack",
    "pretrain",
    "quantize",
    "rate",
    "report",
    "reshape",
    "text",
    "tokenizer",
]
