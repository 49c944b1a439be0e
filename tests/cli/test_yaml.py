"""Settings files that are empty, malformed or contain no settings."""

import pytest

from pets_core.config.pipeline import PipelineConfig


@pytest.mark.parametrize("content", ["", "# nothing\n", "---\n"])
def test_empty_file_uses_the_defaults(started, tmp_path, content):
    (tmp_path / "a.yaml").write_text(content)
    assert started("run", tmp_path / "a.yaml") == PipelineConfig()


MALFORMED_YAML = [
    (b"train: {epochs: 1", "line 1, column 18: expected ',' or '}'"),
    (b"train:\n\tepochs: 1", "line 2, column 1: found character '\\t'"),
    (b"train:\n  epochs: 3\n seed: 2", "line 3, column 2: expected <block end>"),
    (b"source:\n  url: bl\xe5", "line 2 is not UTF-8. Save the file as UTF-8"),
    (b"\xff\xfe\x00", "line 1 is not UTF-16-LE. Save the file as UTF-8"),
    (b"\xff\xd8\xff\xe0 a photo", "line 1 is not UTF-8."),
    (b"train: \x07", "it contains the control character #x07"),
    (b"train:\n  epochs: 3\n  epochs: 4", "duplicate key epochs, first in line 2"),
    (b"train: {}\nmodel: {}\ntrain: {}", "line 3, column 1: duplicate key train, first in line 1"),
    (b"train: {seed: 1, epochs: 2, seed: 1}", "duplicate key seed, first in line 1"),
    (b"train: {}\n---\ntrain: {}", "line 2, column 1: but found another document"),
    (b"train: *unknown", "found undefined alias 'unknown'"),
    (b"train: !!python/object:os.system {}", "could not determine a constructor"),
    (b"train: {[1]: 2}", "found unhashable key"),
    (b"train: {epochs: 2026-13-41}", "month must be in 1..12"),
    (b"train: {epochs: %s}" % (b"9" * 5000), "Exceeds the limit"),
    (b"train: " + b"[" * 5000, "it is nested too deeply"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), MALFORMED_YAML)
@pytest.mark.parametrize("command", ["run", "collab"])
def test_malformed_yaml_is_reported_in_one_line(refused, tmp_path, command, content, message):
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    (line,) = refused(command, path)
    assert line.startswith(f"{path}: is not YAML: ")
    assert message in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file"),
        (b"- train", "expected a mapping of settings, found list"),
        (b"just words", "expected a mapping of settings, found str"),
        (b"1: 2", "1: no such setting"),
        (b"train: {1: 2}", "train.1"),
    ],
)
def test_yaml_without_settings_is_reported_in_one_line(refused, tmp_path, content, message):
    path = tmp_path / "a.yaml"
    if content is not None:
        path.write_bytes(content)
    (line,) = refused("run", path)
    assert message in line


def test_yaml_merge_keys_can_be_overridden(started, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("evaluate: {<<: {batch_size: 5, tta_views: 1}, batch_size: 6}")
    evaluate = started("run", path).evaluate
    assert (evaluate.batch_size, evaluate.tta_views) == (6, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"train: {epochs: 1", "is not YAML: line 1"),
        (b"- train", "expected a mapping of settings, found list"),
        (b"lr_find: 3", "lr_find = 3: lr_find is a group of settings."),
        (b"source:", "source = null: source is a group of settings."),
    ],
)
@pytest.mark.parametrize("command", ["run", "train", "sweep"])
def test_run_with_an_invalid_config_is_not_resumed(refused, tmp_path, command, content, message):
    (tmp_path / "config.yaml").write_bytes(content)
    (line,) = refused(command, "--resume", tmp_path)
    assert message in line
