"""An exported SavedModel behind the V2 protocol: `mlserver start` in this folder."""

import tensorflow as tf
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from mlserver.utils import get_model_uri


class SavedModel(MLModel):
    """Runs the signature that the request's parameter ``signature`` names, or the default one."""

    async def load(self) -> bool:
        """Load the folder that ``uri`` of model-settings.json names."""
        self.loaded = tf.saved_model.load(await get_model_uri(self.settings))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """The outputs of one request, all in the row order of its inputs."""
        name = getattr(payload.parameters, "signature", "serving_default")
        inputs = {x.name: tf.constant(NumpyCodec.decode_input(x)) for x in payload.inputs}
        outputs = []
        for key, value in self.loaded.signatures[name](**inputs).items():
            outputs.append(NumpyCodec.encode_output(key, value.numpy()))
            outputs[-1].shape = value.shape.as_list()  # the codec makes columns of vectors
        return InferenceResponse(model_name=self.name, outputs=outputs)
