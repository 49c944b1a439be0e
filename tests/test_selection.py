"""Selection of the tests for `make quick`."""

from selection import GPU_TESTS, ROOT, affected_tests, choose


def test_tests_of_a_changed_module_are_found_by_its_imports() -> None:
    found = affected_tests({"pets_core/storage/markdown.py"})
    assert found["tests/tasks/artifacts/test_publisher.py"] == 1
    assert found["tests/flows/test_flows.py"] > 1


def test_tests_that_name_a_changed_page_are_found() -> None:
    assert affected_tests({"docs/evaluation.md"})["tests/test_readme.py"] == 1


def test_deleted_test_is_not_run() -> None:
    assert affected_tests({"tests/test_deleted.py"}) == {}


def test_nearest_tests_within_the_budget_are_chosen() -> None:
    seconds = {"changed": 90.0, "near": 20.0, "slow": 30.0, "far": 15.0, "farther": 10.0}
    distances = {"changed": 0, "near": 1, "slow": 2, "far": 3, "farther": 3}
    assert choose(distances, seconds, 130) == {"changed", "near", "farther"}


def test_gpu_tests_are_in_one_folder() -> None:
    """With `-m gpu` only this folder is imported."""
    mark = "pytest.mark." + "gpu"
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if mark in path.read_text()]
    assert files
    assert {path.parent for path in files} == {GPU_TESTS}
