"""Dockerfile, compose file and workflows: linted, and what they name checked against the code."""

import json
import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import yaml
from prefect.settings import get_current_settings
from prefect.settings.legacy import _get_valid_setting_names
from prefect.settings.models.root import Settings

from pets.cli import main as cli
from pets.cli.deployments import read_files
from pets.cli.settings import setting_names
from pets_core.config.pipeline import PipelineConfig

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deployments/docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
BIN = Path(sys.executable).parent
# Of other programs, and of the templates of their containers.
OTHERS = ("AWS_", "POSTGRES_", "PYTHON", "NVIDIA_", "DO_NOT_TRACK", "PATH", "PIP_")


def environment(service: dict) -> dict[str, str]:
    """Variables of a service; YAML's merge of several is a list of them."""
    given = service.get("environment", {})
    return given if isinstance(given, dict) else {k: v for part in given for k, v in part.items()}


def instruction(name: str) -> list[str]:
    """All of one kind in the Dockerfile, with their continuation lines."""
    joined = DOCKERFILE.replace("\\\n", " ")
    return [line.partition(" ")[2] for line in joined.splitlines() if line.startswith(f"{name} ")]


@pytest.mark.parametrize(
    "command",
    [
        ["hadolint", "--failure-threshold", "info", DOCKER / "Dockerfile"],
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", DOCKER / "compose.yaml"],
        ["check-jsonschema", "--builtin-schema", "vendor.github-workflows", *WORKFLOWS],
    ],
    ids=["hadolint", "compose-spec", "workflows"],
)
def test_linters_find_nothing(command) -> None:
    done = subprocess.run([BIN / command[0], *command[1:]], capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr


def test_the_image_holds_what_is_copied_and_git_knows_no_secret() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [words.split()[:-1] for words in instruction("COPY") if "--from" not in words]
    for path in chain.from_iterable(copied):
        assert (ROOT / path).exists(), path
        assert f"!{path}" in ignored, f"the build is not given {path}"
    known = subprocess.run(
        ["git", "check-ignore", DOCKER / ".env"], cwd=ROOT, capture_output=True, text=True
    )
    assert known.stdout.strip().endswith(".env")
    assert "**/.env" in ignored


def test_extras_of_the_image_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (wanted,) = re.findall(r'"\.\[([a-z0-9,]+)\]"', DOCKERFILE)
    assert set(wanted.split(",")) <= project["optional-dependencies"].keys()


def test_one_user_in_the_image_the_templates_and_the_volumes() -> None:
    *_, root, user = instruction("USER")
    assert (root, user) == ("0:0", "10001:10001"), "each image ends as the user"
    assert "useradd --uid 10001 --create-home pets" in DOCKERFILE
    (home,) = [words for words in instruction("WORKDIR") if words.startswith("/home")]
    cache = PipelineConfig().cache_dir.replace("~", home)
    for name in ("cpu", "gpu", "gpuless"):
        (mount,) = [v.split(":")[1] for v in SERVICES[name]["volumes"] if v.startswith("cache:")]
        assert cache.startswith(mount)
    (mount,) = SERVICES["server"]["volumes"]
    assert mount == f"server:{home}/.prefect", "where Prefect keeps leases and its own"


def test_the_gpu_image_has_what_torch_compile_needs() -> None:
    """Triton raises "Failed to find C compiler" in a slim image (triton/runtime/build.py)."""
    (gpu,) = re.findall(r"^FROM cpu AS gpu\n(.*)", DOCKERFILE, re.DOTALL | re.MULTILINE)
    assert re.search(r"apt-get install [^&]* gcc libc6-dev ", gpu)


def test_every_variable_is_one_that_something_reads() -> None:
    prefects = _get_valid_setting_names(Settings) | {"PREFECT_SERVER_ENCRYPTION_KEY"}
    ours = {"PETS_" + name.upper().replace(".", "__") for name in setting_names()}
    given = [name for service in SERVICES.values() for name in environment(service)]
    given += re.findall(r"([A-Z_]+)=", " ".join(instruction("ENV")))
    for name in given:
        assert name in prefects | ours or name.startswith(OTHERS), name


def test_secrets_come_from_the_environment_and_the_example_names_all_of_them() -> None:
    text = (DOCKER / "compose.yaml").read_text()
    asked = set(re.findall(r"\$\{([A-Z_]+)", text))
    required = set(re.findall(r"\$\{([A-Z_]+):\?", text))
    assert asked == required, "each is refused where it is missing"
    example = (DOCKER / ".env.example").read_text()
    assert set(re.findall(r"^([A-Z_]+)=", example, re.MULTILINE)) == asked
    for service in SERVICES.values():
        for name, value in environment(service).items():
            if re.search("PASSWORD|SECRET|AUTH|_KEY$|KEY_ID", name):
                assert "${" in value, name
    filled = re.sub(r"\$\{([A-Z_]+)(:\?[^}]*)?\}", "x", COMPOSE["configs"]["s3"]["content"])
    assert json.loads(filled)["identities"]


def test_ports_are_those_that_the_programs_open() -> None:
    settings = get_current_settings()
    port = settings.server.api.port
    assert SERVICES["server"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert environment(SERVICES["cpu"])["PREFECT_API_URL"] == f"http://server:{port}/api"
    assert f"127.0.0.1:{port}/api/health" in SERVICES["server"]["healthcheck"]["test"][-1]
    assert f"127.0.0.1:{settings.worker.webserver.port}/health" in DOCKERFILE
    (s3,) = [w.split("=")[1] for w in SERVICES["store"]["command"] if w.startswith("-s3.port")]
    assert environment(SERVICES["cpu"])["AWS_ENDPOINT_URL"] == f"http://store:{s3}"
    url = environment(SERVICES["server"])["PREFECT_SERVER_DATABASE_CONNECTION_URL"]
    database = environment(SERVICES["database"])
    assert url.endswith(f"@database:5432/{database['POSTGRES_DB']}")
    assert f"//{database['POSTGRES_USER']}:" in url


def test_there_is_a_worker_for_each_pool_and_the_deployments_are_good(monkeypatch) -> None:
    for name, value in environment(SERVICES["deploy"]).items():
        if name.startswith("PETS_"):
            monkeypatch.setenv(name, value)
    assert SERVICES["deploy"]["command"] == ["pets", "deploy", "deployments/prefect.yaml"]
    monkeypatch.chdir(ROOT)
    cli.main([*SERVICES["deploy"]["command"][1:], "--check"])
    workers = [s["command"] for s in SERVICES.values() if "worker" in s.get("command", [])]
    workers += [json.loads(words) for words in instruction("CMD")]
    pools = read_files(ROOT / "deployments/prefect.yaml").pools
    assert {words[words.index("--pool") + 1] for words in workers} == pools.keys()
    for words in workers:
        assert words[:3] == ["prefect", "worker", "start"]
        assert "--with-healthcheck" in words, "the image's health check asks for it"


def test_one_training_has_the_gpus_and_docker_pools_reach_the_others() -> None:
    for service in ("gpu", "gpuless"):
        command = SERVICES[service]["command"]
        assert command[command.index("--limit") + 1] == "1"
    template = yaml.safe_load((DOCKER / "template.yaml").read_text())
    networks = template["variables"]["properties"]["networks"]["default"]
    assert networks == [COMPOSE["networks"]["default"]["name"]]
