"""Dockerfile, compose file and workflows: linters, and consistency with the code."""

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
from pets.cli.parser import command_parser
from pets.cli.serve import TOKEN_VARIABLE, add_arguments
from pets.cli.settings import setting_names
from pets_core.config.pipeline import PipelineConfig

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deployments/docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
COMPOSE_FILES = [DOCKER / "compose.yaml", DOCKER / "serve.yaml"]
COMPOSE, SERVING = (yaml.safe_load(file.read_text()) for file in COMPOSE_FILES)
SERVICES = COMPOSE["services"] | SERVING["services"]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
ISSUE_CONFIG = ROOT / ".github/ISSUE_TEMPLATE/config.yml"
ISSUE_FORMS = sorted(set(ISSUE_CONFIG.parent.glob("*.yml")) - {ISSUE_CONFIG})
CITATION = ROOT / "CITATION.cff"
BIN = Path(sys.executable).parent
# Prefixes of variables that other programs and their images read.
FOREIGN_PREFIXES = ("AWS_", "POSTGRES_", "PYTHON", "NVIDIA_", "DO_NOT_TRACK", "PATH", "PIP_")


def environment(service: dict) -> dict[str, str]:
    """Return the variables of a service; a list of mappings is merged."""
    given = service.get("environment", {})
    return given if isinstance(given, dict) else {k: v for part in given for k, v in part.items()}


def instructions(name: str) -> list[str]:
    """Return the arguments of all instructions of a kind, continuation lines joined."""
    joined = DOCKERFILE.replace("\\\n", " ")
    return [line.partition(" ")[2] for line in joined.splitlines() if line.startswith(f"{name} ")]


@pytest.mark.parametrize(
    "command",
    [
        ["hadolint", "--failure-threshold", "info", DOCKER / "Dockerfile"],
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", *COMPOSE_FILES],
        ["check-jsonschema", "--builtin-schema", "vendor.github-workflows", *WORKFLOWS],
        ["check-jsonschema", "--builtin-schema", "vendor.github-issue-forms", *ISSUE_FORMS],
        ["check-jsonschema", "--builtin-schema", "vendor.github-issue-config", ISSUE_CONFIG],
        ["check-jsonschema", "--builtin-schema", "vendor.citation-file-format", CITATION],
    ],
    ids=["hadolint", "compose-spec", "workflows", "issue-forms", "issue-config", "citation"],
)
def test_linters_report_no_problems(command) -> None:
    done = subprocess.run([BIN / command[0], *command[1:]], capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr


def test_copied_files_are_in_the_build_context_and_secrets_are_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [line.split()[:-1] for line in instructions("COPY") if "--from" not in line]
    for path in chain.from_iterable(copied):
        assert (ROOT / path).exists(), path
        assert f"!{path}" in ignored, f"{path} is not in the build context"
    ignored_by_git = subprocess.run(
        ["git", "check-ignore", DOCKER / ".env"], cwd=ROOT, capture_output=True, text=True
    )
    assert ignored_by_git.stdout.strip().endswith(".env")
    assert "**/.env" in ignored


def test_image_extras_exist_in_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r'"\.\[([a-z0-9,]+)\]"', DOCKERFILE)
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()


def test_image_has_one_user_and_volumes_match_its_home() -> None:
    *_, root, user = instructions("USER")
    assert (root, user) == ("0:0", "10001:10001"), "each image ends with the unprivileged user"
    assert "useradd --uid 10001 --create-home pets" in DOCKERFILE
    (home,) = [path for path in instructions("WORKDIR") if path.startswith("/home")]
    cache = PipelineConfig().cache_dir.replace("~", home)
    for name in ("cpu", "gpu", "gpuless"):
        (mount,) = [v.split(":")[1] for v in SERVICES[name]["volumes"] if v.startswith("cache:")]
        assert cache.startswith(mount)
    (mount,) = SERVICES["server"]["volumes"]
    assert mount == f"server:{home}/.prefect", "Prefect stores leases and its files there"


def test_gpu_image_has_a_c_compiler_for_torch_compile() -> None:
    """Triton raises "Failed to find C compiler" in a slim image (triton/runtime/build.py)."""
    (gpu,) = re.findall(r"^FROM cpu AS gpu\n(.*)", DOCKERFILE, re.DOTALL | re.MULTILINE)
    assert re.search(r"apt-get install [^&]* gcc libc6-dev ", gpu)


def test_every_environment_variable_is_known() -> None:
    prefect_names = _get_valid_setting_names(Settings) | {"PREFECT_SERVER_ENCRYPTION_KEY"}
    own_names = {"PETS_" + name.upper().replace(".", "__") for name in setting_names()}
    own_names.add(TOKEN_VARIABLE)
    given = [name for service in SERVICES.values() for name in environment(service)]
    given += re.findall(r"([A-Z_]+)=", " ".join(instructions("ENV")))
    for name in given:
        assert name in prefect_names | own_names or name.startswith(FOREIGN_PREFIXES), name


def test_secrets_are_variables_that_the_example_lists() -> None:
    text = "".join(file.read_text() for file in COMPOSE_FILES)
    referenced = set(re.findall(r"\$\{([A-Z_]+)", text))
    required = set(re.findall(r"\$\{([A-Z_]+):\?", text))
    assert referenced == required, "compose rejects every missing variable"
    example = (DOCKER / ".env.example").read_text()
    assert set(re.findall(r"^([A-Z_]+)=", example, re.MULTILINE)) == referenced
    for service in SERVICES.values():
        for name, value in environment(service).items():
            if re.search("PASSWORD|SECRET|AUTH|_KEY$|KEY_ID", name):
                assert "${" in value, name
    filled = re.sub(r"\$\{([A-Z_]+)(:\?[^}]*)?\}", "x", COMPOSE["configs"]["s3"]["content"])
    assert json.loads(filled)["identities"]


def test_ports_match_those_of_the_programs() -> None:
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


def test_model_server_has_a_token_and_its_port() -> None:
    service = SERVICES["serve"]
    _, command, *arguments = service["command"]
    parser = command_parser(command)
    add_arguments(parser)
    given = parser.parse_args(arguments)
    assert service["ports"] == [f"127.0.0.1:{given.port}:{given.port}"]
    assert f"127.0.0.1:{given.port}/ready" in service["healthcheck"]["test"][-1]
    assert environment(service)[TOKEN_VARIABLE].startswith("${")
    store = COMPOSE["x-store"]
    assert store.items() <= environment(service).items(), "as that of the workers"
    extras = re.findall(r'"\.\[([a-z0-9,]+)\]"', DOCKERFILE)[0].split(",")
    assert "serve" in extras


def test_every_pool_has_a_worker_and_the_deployments_pass_the_check(monkeypatch) -> None:
    for name, value in environment(SERVICES["deploy"]).items():
        if name.startswith("PETS_"):
            monkeypatch.setenv(name, value)
    assert SERVICES["deploy"]["command"] == ["pets", "deploy", "deployments/prefect.yaml"]
    monkeypatch.chdir(ROOT)
    cli.main([*SERVICES["deploy"]["command"][1:], "--check"])
    workers = [s["command"] for s in SERVICES.values() if "worker" in s.get("command", [])]
    workers += [json.loads(line) for line in instructions("CMD")]
    pools = read_files(ROOT / "deployments/prefect.yaml").pools
    assert {command[command.index("--pool") + 1] for command in workers} == pools.keys()
    for command in workers:
        assert command[:3] == ["prefect", "worker", "start"]
        assert "--with-healthcheck" in command, "the image's health check needs it"


def test_gpu_workers_run_one_training_and_docker_pools_share_the_network() -> None:
    for service in ("gpu", "gpuless"):
        command = SERVICES[service]["command"]
        assert command[command.index("--limit") + 1] == "1"
    template = yaml.safe_load((DOCKER / "template.yaml").read_text())
    networks = template["variables"]["properties"]["networks"]["default"]
    assert networks == [COMPOSE["networks"]["default"]["name"]]
