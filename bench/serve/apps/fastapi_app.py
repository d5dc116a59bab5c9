"""FastAPI: a route that reads JSON with orjson, calls the model and writes JSON with orjson."""

import orjson
from common import SavedModel
from fastapi import FastAPI, Request, Response

app = FastAPI()
model = SavedModel()


@app.post("/predict")
async def predict(request: Request) -> Response:
    """Called in the event loop: with a worker for each core, a thread would only add its own cost."""
    instances = orjson.loads(await request.body())["instances"]
    answer = orjson.dumps(model(model.arrays(instances)), option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(answer, media_type="application/json")
