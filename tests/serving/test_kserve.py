"""The manifests of docs/serving.md name folders, runtimes and ports that there are."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/serving.md").read_text()
SERVICES = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", TEXT, re.S)]
EXPORTS = {  # who writes what a model format is read from
    "tensorflow": ("export/savedmodel.py", None),
    "onnx": ("export/onnx_models.py", "kserve-tritonserver"),
}


def of_kind(key):
    return [s["spec"]["predictor"][key] for s in SERVICES if key in s["spec"]["predictor"]]


def test_all_are_services():
    assert len(SERVICES) == len(of_kind("model")) + len(of_kind("containers")) == 3
    for service in SERVICES:
        assert service["apiVersion"] == "serving.kserve.io/v1beta1"
        assert service["kind"] == "InferenceService" and service["metadata"]["name"]


@pytest.mark.parametrize("model", of_kind("model"), ids=lambda m: m["modelFormat"]["name"])
def test_storage_is_the_folder_that_a_script_writes(model):
    script, runtime = EXPORTS[model["modelFormat"]["name"]]
    (folder,) = re.findall(r'args\.run / "(\w+)"', (ROOT / script).read_text())
    assert model["storageUri"].split("/")[-1] == folder
    assert model.get("runtime") == runtime
    assert model.get("protocolVersion", "v1") == ("v1" if runtime is None else "v2")


def test_the_image_of_mlserver_has_what_it_starts():
    settings = pytest.importorskip("mlserver.settings")
    ((container,),) = of_kind("containers")
    (image,) = re.findall(r"```dockerfile\n(FROM python.*?)```", TEXT, re.S)
    copied = dict(re.findall(r"^COPY (\S+) (\S+)$", image, re.M))
    (example,) = [path for path, to in copied.items() if [*container["args"]][-1] == to]
    assert container["args"][:2] == ["mlserver", "start"]
    assert (ROOT / example / "model-settings.json").exists()
    (uri,) = re.findall(r'"uri": "\./(\w+)"', (ROOT / example / "model-settings.json").read_text())
    assert f"{copied[example]}/{uri}" in copied.values()
    (port,) = container["ports"]
    assert port["containerPort"] == settings.Settings().http_port
