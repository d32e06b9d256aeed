import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(find_spec("grpc_tools") is None, reason="grpcio-tools comes with the dev dependencies")
def test_the_generated_code_is_what_the_proto_says(tmp_path):
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        "-I",
        "src",
        *outputs,
        "varangian/protos/ps.proto",
    ]
    subprocess.run(command, cwd=ROOT, check=True)
    made = sorted((tmp_path / "varangian/protos").iterdir())
    assert [path.name for path in made] == ["ps_pb2.py", "ps_pb2.pyi", "ps_pb2_grpc.py"]
    for path in made:
        assert path.read_bytes() == (ROOT / "protos" / path.name).read_bytes(), f"regenerate {path.name}"


def test_the_code_asks_for_no_newer_runtime_than_we_promise():
    assert "# Protobuf Python Version: 6.31.1" in (ROOT / "protos/ps_pb2.py").read_text()
    assert "GRPC_GENERATED_VERSION = '1.80.1'" in (ROOT / "protos/ps_pb2_grpc.py").read_text()
