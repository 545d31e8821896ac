"""Text in and out: tokenizer, chat template, incremental detokenizer. No torch, no transformers."""

from glass_core.text.detokenizer import Detokenizer
from glass_core.text.processor import TextProcessor, load_text_processor

__all__ = ["Detokenizer", "TextProcessor", "load_text_processor"]
