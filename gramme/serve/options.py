"""What the user may set about the server: each field is a flag, an environment variable and a configuration key."""
from dataclasses import dataclass

from gramme.config import option


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Limits are generous for people and small for attackers; times are in seconds."""

    host: str = option("127.0.0.1", "address to listen on; beyond this machine only with an API key")
    port: int = option(8000, "port to listen on")
    insecure: bool = option(False, "listen beyond this machine without an API key")
    api_key: str | None = option(None, "key that requests must bring; better in the environment or a file")
    api_key_file: str | None = option(None, "file with keys, one a line; any of them opens")
    metrics_auth: bool = option(False, "/metrics needs the key too")
    allowed_hosts: str | None = option(None, "names, comma-separated, that a Host header may hold too")
    cors_origins: str | None = option(None, "origins, comma-separated, whose pages may call the API")
    served_model_name: str | None = option(None, "the model's name in the API")
    metrics_prefix: str = option("gramme", "first part of the metrics' names", ("gramme", "vllm"))
    access_log: bool = option(True, "one line of JSON a request on stderr, without prompts and answers")
    verbose: bool = option(False, "say at the start of each optimisation whether it acts, at the end how far the "
                                  "plan's predictions of steps were off")
    calibration: bool = option(True, "at the end, learn from these errors for the plans to come")
    restart: bool = option(False, "start the engine once more when it dies")
    max_queue: int = option(256, "sequences that may wait beyond those that run; more are answered 429")
    slo_ttft: str | None = option(None, "longest time to the first token, such as 500ms: requests for which it is "
                                        "predicted to be longer are answered 429")
    max_connections: int = option(1024, "connections at once; more are closed with 503")
    queue_limit_s: float = option(600.0, "longest wait for the first step; then 503")
    run_limit_s: float = option(3600.0, "longest time from arrival to the last token; then 504")
    header_limit_s: float = option(10.0, "longest time for a request's headers")
    body_limit_s: float = option(30.0, "longest time for a request's body; then 408")
    write_limit_s: float = option(30.0, "longest time without progress that a slow reader may cause")
    stall_limit_s: float = option(60.0, "longest step: after it the server is not ready, after ten of them the "
                                        "engine is killed")
    drain_limit_s: float = option(60.0, "after SIGTERM, longest time for what runs to come to its end")
