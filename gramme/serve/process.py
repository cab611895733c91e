"""The HTTP process: opens the model's text side, starts the engine's process and listens until it is interrupted."""
import uvicorn

from gramme.config import EngineConfig
from gramme.models.open import open_model
from gramme.serve.app import Server
from gramme.serve.async_llm import AsyncLLM
from gramme.text.chat import open_chat
from gramme.text.tokenizer import load_tokenizer


def serve(config: EngineConfig, *, host: str = "127.0.0.1", port: int = 8000, served_model_name: str | None = None,
          metrics_prefix: str = "gramme") -> None:
    """HTTP answers while the engine loads; /health says when it is ready."""
    opened = open_model(config)
    chat_form, tokenizer = open_chat(opened.text, config.chat_template), load_tokenizer(opened.text)
    server = Server(AsyncLLM.spawn(config), tokenizer, chat_form, served_model_name or opened.name, metrics_prefix)
    uvicorn.run(server.app(), host=host, port=port, log_level="warning")
