"""Commands of README and docs: all are parsed and validated, those of two pages also run.

A few run on every push with quick settings; the others run nightly.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest
from PIL import Image
from prefect_server import Server

from pets.cli import flow_command
from pets.cli import main as cli
from pets.cli.parser import Parser
from pets_core.ratings.sample import write_ratings_sample

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EVALUATION = (ROOT / "docs/evaluation.md").read_text()
PLACEHOLDERS = {"make run", "make test", "source .venv/bin/activate", "pets ui FLOW_RUN_ID"}
TRAINING = {"run", "train", "lr-find", "sweep", "collab", "evaluate", "recommend", "similar"}
"""Subcommands that take over ten seconds, alone or with their inputs: nightly, except two."""
ON_EVERY_PUSH = {
    "pets run --source.url path/to/photos",
    "pets evaluate --from path/to/predictions.parquet",
}


def is_nightly(command: str) -> bool:
    return command.split()[1] in TRAINING and command not in ON_EVERY_PUSH


def commands(page: str) -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", page, re.S)
    return [line for block in blocks for line in block.splitlines() if line not in PLACEHOLDERS]


PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
}
WRITTEN = sorted(
    {
        line.partition("  #")[0]
        for page in PAGES.values()
        for line in commands(page)
        if line.startswith("pets ")
    }
)
COMMANDS = [
    command
    for command in dict.fromkeys(commands(README) + commands(EVALUATION))
    # A server runs until it is stopped; tests/cli/test_serve.py starts one.
    if not command.startswith("pets serve ")
]
QUICK = {
    "PETS_MODEL__BACKBONE": "test_efficientnet",
    "PETS_MODEL__WEIGHTS": "none",
    "PETS_MODEL__IMAGE_SIZE": "64",
    "PETS_LR_FIND__NUM_STEPS": "12",
    "PETS_LAUNCH__NUM_PROCESSES": "1",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, drawn_sample) -> Path:
    """Working directory with files at the paths used in the README."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "examples").symlink_to(ROOT / "examples")
    for breed in ("pug", "boxer"):
        for number in range(20):
            path = folder / "path/to/photos" / breed / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((80, 60), 40 + 5 * number).convert("RGB").save(path)
    (folder / "photo.jpg").write_bytes(path.read_bytes())
    photos = sorted((folder / "path/to/photos").rglob("*.jpg"))
    with zipfile.ZipFile(folder / "path/to/photos.zip", "w") as archive:
        for photo in photos:
            archive.write(photo, photo.relative_to(folder / "path/to/photos"))
    rows = [f"{photo.relative_to(folder / 'path/to')},{photo.parent.name}" for photo in photos]
    write_ratings_sample(folder / "path/to")
    (folder / "path/to/table.csv").write_text("\n".join(["file,breed", *rows, ""]))
    named = [row.split(",")[0] for row in rows]
    weights = [f"{name},{number % 9}" for number, name in enumerate(named)]
    (folder / "path/to/weights.csv").write_text("\n".join(["image,weight", *weights, ""]))
    save = (
        "import timm, safetensors.torch as s;"
        "s.save_file(timm.create_model('resnet34').state_dict(), 'path/to/resnet34.safetensors')"
    )
    subprocess.run([sys.executable, "-c", save], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory, prefect_home) -> Iterator[Server]:
    """Shared Prefect server. Without it each command starts its own, which takes ten seconds."""
    running = Server(tmp_path_factory.mktemp("server"), prefect_home)
    with running.started():
        yield running


def run(
    command: list[str],
    folder: Path,
    drawn_sample: Path,
    server: Server | None = None,
    expected: int = 0,
) -> str:
    environment = os.environ | QUICK
    environment |= {
        "PETS_CACHE_DIR": str(folder / "cache"),
        "PREFECT_HOME": str(folder / "prefect"),
        "HF_HOME": str(folder / "hugging-face"),
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    if server:
        environment["PREFECT_API_URL"] = server.url
    if command[1] == "collab" or "--source.targets" in command:
        # Factors start near 0 and coordinates at the centre: 12 steps are too few.
        del environment["PETS_LR_FIND__NUM_STEPS"]
    if "--source.url" not in command:
        # Targets other than the class need a data set with another name.
        name = f"sample-{command[3]}" if command[2:3] == ["--source.targets"] else "sample"
        environment |= {"PETS_SOURCE__URL": str(drawn_sample), "PETS_SOURCE__NAME": name}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == expected, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr if expected else done.stdout


@pytest.fixture(scope="module")
def trained(folder, drawn_sample, server) -> Path:
    """Model at path/to/model."""
    printed = run(["pets", "train", "--train.base_lr", "3e-3"], folder, drawn_sample, server)
    return Path(re.search(r"Model +(\S+)", printed).group(1))


@pytest.fixture(scope="module")
def evaluated(trained, folder, drawn_sample, server) -> Path:
    """Evaluation of the trained model, which is promoted after another model."""
    other = shutil.copytree(trained, trained.with_name("another"))
    for model in (other, trained):
        printed = run(["pets", "evaluate", str(model)], folder, drawn_sample, server)
        evaluation = Path(re.search(r"Report +(\S+)", printed).group(1)).parent
        run(["pets", "models", "promote", evaluation.parent.name], folder, drawn_sample)
    return evaluation


@pytest.fixture(scope="module")
def recommender(folder, drawn_sample, server) -> Path:
    printed = run(["pets", "collab", "--train.weight_decay", "0.03"], folder, drawn_sample, server)
    return Path(re.search(r"Model +(\S+)", printed).group(1))


@pytest.fixture(scope="module")
def embedded(trained, folder, drawn_sample, server) -> Path:
    printed = run(["pets", "embed", str(trained)], folder, drawn_sample, server)
    return Path(re.search(r"Embeddings +(\S+)", printed).group(1))


@pytest.fixture(scope="module")
def label_fixes(evaluated, folder) -> Path:
    first = pq.read_table(evaluated / "predictions.parquet").slice(0, 1).to_pylist()[0]
    fixes = folder / "path/to/label_fixes.csv"
    fixes.write_text(f"id,label\n{first['id']},{first['actual']}\n")
    return fixes


@pytest.fixture(scope="module")
def exported(trained, folder, drawn_sample) -> Path:
    run(["pets", "export", str(trained), "--to", "exported.onnx"], folder, drawn_sample)
    return folder / "exported.onnx"


def test_readme_has_commands() -> None:
    assert len(COMMANDS) > 10
    assert all(line.startswith("pets ") for line in COMMANDS)
    assert set(COMMANDS) >= ON_EVERY_PUSH


class Parsed(Exception):  # noqa: N818 - not an error: the command's work would start now
    pass


@pytest.fixture
def parse(monkeypatch, tmp_path):
    """Function that parses and validates a command without running it."""

    def parsed(*_: object, **__: object) -> None:
        raise Parsed

    def parse_args(self, arguments, inner=Parser.parse_args):
        result = inner(self, arguments)
        return result if self.prog == "pets" else parsed()

    # Commands without a flow stop after parsing.
    monkeypatch.setattr(Parser, "parse_args", parse_args)
    monkeypatch.setattr(flow_command, "_check_input", lambda *_: None)
    monkeypatch.setattr(flow_command, "start_flow", parsed)
    monkeypatch.setattr(flow_command, "_print_config", parsed)
    monkeypatch.setattr("pets_core.runtime.multi_node.join", parsed)
    monkeypatch.setattr("pets_core.ratings.files.check_tables", lambda _: None)
    monkeypatch.setattr(flow_command, "_find_run", lambda parsed: parsed.resume)
    monkeypatch.chdir(ROOT)

    def parse_command(arguments: list[str]) -> None:
        stored = {"store": str(tmp_path)} | ({"ratings": {}} if arguments[0] == "collab" else {})
        monkeypatch.setattr("pets_core.runtime.runs.load_run_settings", lambda _: stored)
        cli.main(arguments)

    return parse_command


@pytest.mark.parametrize("command", WRITTEN)
def test_documented_command_is_valid(command: str, parse, monkeypatch) -> None:
    if "coat:COAT" in command:
        # The page with the command has the module's source.
        coat = ModuleType("coat")
        exec(re.search(r"```python\n(.*?)```", PAGES["docs/new-target.md"], re.S)[1], vars(coat))
        monkeypatch.setitem(sys.modules, "coat", coat)
    with pytest.raises(Parsed):
        parse(shlex.split(command)[1:])


def test_invalid_commands_fail(parse, capsys) -> None:
    for arguments in (["run", "--train.epoch", "3"], ["predict"], ["models", "promot", "RUN"]):
        with pytest.raises(SystemExit):
            parse(arguments)
    assert "no such setting" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(
            command, marks=pytest.mark.nightly if is_nightly(command) else pytest.mark.slow
        )
        for command in COMMANDS
    ],
)
def test_readme_command_succeeds(command: str, folder, drawn_sample, server, request) -> None:
    placeholders = {
        "path/to/model": lambda: request.getfixturevalue("trained"),
        "path/to/run": lambda: request.getfixturevalue("trained").parent,
        "path/to/predictions.parquet": lambda: (
            request.getfixturevalue("evaluated") / "predictions.parquet"
        ),
        "path/to/embeddings.parquet": lambda: request.getfixturevalue("embedded"),
        "path/to/label_fixes.csv": lambda: request.getfixturevalue("label_fixes"),
        "path/to/recommender": lambda: request.getfixturevalue("recommender"),
        "RUN": lambda: request.getfixturevalue("evaluated").parent.name,
        "DATASET": lambda: request.getfixturevalue("evaluated") and "sample",
        "OLD": lambda: "sample",
        "NEW": lambda: "sample",
    }
    arguments = shlex.split(command)
    if arguments[1:3] == ["predict", "model.onnx"]:
        arguments[2] = str(request.getfixturevalue("exported"))
    if arguments[1] == "datasets":
        request.getfixturevalue("trained")
    arguments = [str(placeholders[word]()) if word in placeholders else word for word in arguments]
    rejected = "--gate.promote" in arguments
    printed = run(arguments, folder, drawn_sample, server, expected=3 if rejected else 0)
    if arguments[1] in ("run", "evaluate"):
        if "--source.targets" not in arguments:
            assert "Error rate" in printed
            assert "Most confused" in printed
        assert Path(re.search(r"Report +(\S+)", printed).group(1)).is_file()
    if arguments[1] == "collab":
        own, biases, mean = map(float, re.findall(r"^  (\d\.\d+)  ", printed, re.M))
        assert own < biases < mean
    if rejected:
        assert re.search(r"Gate +not passed: error rate", printed)


@pytest.mark.slow
def test_make_run_does_not_reinstall(folder, drawn_sample) -> None:
    if not (ROOT / ".venv/.installed").exists():
        pytest.skip("make has not set up .venv here")
    printed = run(["make", "-C", str(ROOT), "run"], folder, drawn_sample)
    assert "Installing" not in printed
    assert "Error rate" in printed


@pytest.mark.slow
def test_python_example_runs(folder, drawn_sample) -> None:
    code = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    tiny = "model={'backbone': 'test_efficientnet', 'weights': 'none', 'image_size': 64}"
    small = code.replace('"sample_photos_per_breed": 8', f'"url": {str(drawn_sample)!r}')
    small = small.replace("train=", f"{tiny}, cache_dir={str(folder / 'cache')!r}, train=")
    assert small != code
    run([sys.executable, "-c", small], folder, drawn_sample)


@pytest.mark.slow
def test_data_set_example_runs(folder, drawn_sample, trained) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/data.md").read_text(), re.S).group(1)
    printed = run([sys.executable, "-c", code], folder, drawn_sample)
    assert re.search(r"^[A-Z][A-Za-z ]+ \(\d+, \d+\)$", printed, re.M), printed


def test_commands_of_every_page_are_checked() -> None:
    assert {"README.md", "docs/README.md", "docs/tutorial.md", "docs/cli.md"} <= set(PAGES)
    assert "pets run --source.targets box" in WRITTEN
    assert 'pets runs compare "first try" "more epochs"' in WRITTEN


def test_documented_scripts_and_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {*re.findall(r"^([\w-]+):", makefile, re.M), ".venv/bin/python"}
    checked = 0
    for page, text in PAGES.items():
        for block in re.findall(r"```console\n(.*?)```", text, re.S):
            for line in block.splitlines():
                program, *words = shlex.split(line, comments=True) or [""]
                if program == "make":
                    unknown = [word for word in words if "=" not in word and word not in targets]
                    assert unknown == [], (page, line)
                elif program == "python":
                    assert (ROOT / words[0]).is_file(), (page, line)
                checked += program in ("make", "python")
    assert checked > 5


def test_linked_paths_exist() -> None:
    for name, page in PAGES.items():
        links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page)
        local = [link for link in links if "://" not in link]
        folder = (ROOT / name).parent
        assert [link for link in local if not (folder / link).exists()] == [], name
