"""What the HTTP process and the engine process say to each other: length-prefixed msgpack. Knows no HTTP."""
import msgspec

from gramme.config import EngineConfig, GenerationDefaults, ModelConfig, Plan
from gramme.llm.report import Loaded
from gramme.request import EngineStats, Request, Update

MAX_MESSAGE_BYTES = 1 << 30


class Start(msgspec.Struct, tag=True):
    config: EngineConfig


class Submit(msgspec.Struct, tag=True):
    request: Request


class Abort(msgspec.Struct, tag=True):
    id: str


class Finish(msgspec.Struct, tag=True):
    """A stop string ended one sample."""

    id: str
    index: int


class Ping(msgspec.Struct, tag=True):
    """Answered with Updates between two steps: the engine gets on."""


class Ready(msgspec.Struct, tag=True):
    model: ModelConfig
    plan: Plan
    defaults: GenerationDefaults
    loaded: Loaded = Loaded()


class Refused(msgspec.Struct, tag=True):
    id: str
    message: str
    param: str | None
    fault: bool = False  # ours, not the request's


class Updates(msgspec.Struct, tag=True):
    updates: list[Update]
    stats: EngineStats


class Failed(msgspec.Struct, tag=True):
    """The last message: why the engine ends, for the log, not for clients."""

    message: str
    user: bool = False  # what the user asked for cannot be done


ToEngine = Start | Submit | Abort | Finish | Ping
FromEngine = Ready | Refused | Updates | Failed
to_engine = msgspec.msgpack.Decoder(ToEngine)
from_engine = msgspec.msgpack.Decoder(FromEngine)


def pack(message: ToEngine | FromEngine) -> bytes:
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(4, "little") + body
