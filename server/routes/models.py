"""`GET /v1/models` and `GET /v1/models/{id}`."""

from fastapi import APIRouter

from server.deps import CreatedDep, ModelDep, SettingsDep
from server.routes.build import check_model_name
from server.routes.described import ERROR_RESPONSES
from server.schemas.models import Model, ModelList

router = APIRouter(tags=["models"], responses={503: ERROR_RESPONSES[503]})


@router.get("/v1/models")
async def list_models(settings: SettingsDep, model: ModelDep, created: CreatedDep) -> ModelList:
    """The served model, then its aliases."""
    info = model.engine.info
    names = dict.fromkeys((info.model_name, *settings.model_aliases))
    return ModelList(data=[Model(id=name, created=created, max_model_len=info.max_model_len) for name in names])


@router.get("/v1/models/{model_id:path}", responses={404: ERROR_RESPONSES[404]})
async def get_model(model_id: str, settings: SettingsDep, model: ModelDep, created: CreatedDep) -> Model:
    """One model by name."""
    info = model.engine.info
    check_model_name(model_id, info, settings)
    return Model(id=model_id, created=created, max_model_len=info.max_model_len)
