"""`/v1/models`: what is served."""

from typing import Literal

from pydantic import BaseModel, Field


class Model(BaseModel):
    """One name of the served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "glass"
    max_model_len: int = Field(description="prompt and answer together, in tokens")


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]
