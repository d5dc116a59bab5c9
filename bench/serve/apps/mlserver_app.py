"""MLServer: a runtime of our own for a SavedModel, in the V2 protocol, with MLServer's adaptive batching before it."""

from common import SavedModel
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse
from numpy import asarray


class Runtime(MLModel):
    """Decodes each input, calls the model, encodes each output."""

    async def load(self) -> bool:
        """Loads the SavedModel."""
        self._model = SavedModel()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answers a batch."""
        inputs = {}
        for each in payload.inputs:
            kind = self._model.types[each.name]
            if kind is object:
                inputs[each.name] = asarray(StringCodec.decode_input(each), object)
            else:
                inputs[each.name] = NumpyCodec.decode_input(each).astype(kind, copy=False)
        outputs = self._model(inputs)
        return InferenceResponse(
            model_name=self.name,
            outputs=[NumpyCodec.encode_output(alias, array) for alias, array in outputs.items()],
        )
