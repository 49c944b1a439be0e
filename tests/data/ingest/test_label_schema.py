"""The label contract: versioned, enforced on the next ingest, indices never reassigned."""

import json

import pyarrow.parquet as pq
import pytest

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.dataset import SCHEMA, SCHEMA_VERSION
from pets_core.data.ingest.commit import ingest
from pets_core.data.ingest.label_schema import Contract, load_contract, reconcile, save_contract
from pets_core.data.versions import list_versions
from pets_core.errors import PetsError
from pets_core.records.dataset import ClassInfo


def config(tmp_path, url, new_labels="refuse") -> PipelineConfig:
    return PipelineConfig.model_validate(
        {
            "store": str(tmp_path / "store"),
            "cache_dir": str(tmp_path / "cache"),
            "source": {"url": str(url), "valid_fraction": 0.2},
            "ingest": {"num_workers": 1, "new_labels": new_labels},
        }
    )


@pytest.fixture
def photos(tmp_path, write_folder):
    """A folder with a class that was added after its first ingest."""
    root = write_folder(tmp_path / "photos", {"beagle": 20, "siamese": 20})
    ingest(config(tmp_path, root))
    for path in (write_folder(tmp_path / "new", {"x": 1, "akita": 20}) / "akita").rglob("*"):
        (root / "akita").mkdir(exist_ok=True)
        path.rename(root / "akita" / path.name)
    return root


def contracts(tmp_path, name="photos") -> dict[str, dict]:
    folder = tmp_path / "store/datasets" / name / "contracts"
    return {path.name: json.loads(path.read_bytes()) for path in sorted(folder.iterdir())}


def labels(manifest) -> dict[str, int]:
    tables = [
        pq.read_table(manifest.shard_url(s), columns=["target_text", "label"])
        for info in manifest.splits.values()
        for s in info.shards
    ]
    pairs = {(r["target_text"], r["label"]) for table in tables for r in table.to_pylist()}
    assert len(pairs) == len(dict(pairs))
    return dict(pairs)


def test_first_ingest_writes_contract_version_1(tmp_path, write_folder):
    manifest = ingest(config(tmp_path, write_folder(tmp_path / "photos", {"b": 20, "a": 20})))
    assert contracts(tmp_path) == {
        "00001.json": {
            "version": 1,
            "schema_version": SCHEMA_VERSION,
            "columns": {field.name: str(field.type) for field in SCHEMA},
            "vocabulary": [{"name": "a", "species": None}, {"name": "b", "species": None}],
            "targets": "class",
            "numbers": [],
        }
    }
    assert manifest.contract_version == 1


def test_a_new_label_is_refused_with_the_remedies(tmp_path, photos):
    before = contracts(tmp_path)
    with pytest.raises(PetsError) as error:
        ingest(config(tmp_path, photos))
    for fragment in (
        "'akita'",
        "'photos'",
        "version 1",
        "ingest.new_labels = extend",
        "quarantine",
        "source.name",
    ):
        assert fragment in str(error.value)
    assert contracts(tmp_path) == before
    assert len(list_versions(str(tmp_path / "store"))) == 1


def test_new_labels_can_be_quarantined(tmp_path, photos):
    manifest = ingest(config(tmp_path, photos, "quarantine"))
    rows = pq.read_table(f"{manifest.url}/quarantine.parquet").to_pylist()
    assert [row["id"] for row in rows] == sorted(f"akita/{n}.jpg" for n in range(20))
    assert {(row["reason"], row["detail"]) for row in rows} == {("label_outside_contract", "akita")}
    assert manifest.quarantine_reasons == {"label_outside_contract": 20}
    assert labels(manifest) == {"beagle": 0, "siamese": 1}
    assert (manifest.contract_version, list(contracts(tmp_path))) == (1, ["00001.json"])


def test_new_labels_can_be_appended(tmp_path, photos):
    manifest = ingest(config(tmp_path, photos, "extend"))
    # The new label is alphabetically first, but its index is the last.
    assert labels(manifest) == {"beagle": 0, "siamese": 1, "akita": 2}
    assert manifest.class_names == ("beagle", "siamese", "akita")
    assert manifest.contract_version == 2
    assert list(contracts(tmp_path)) == ["00001.json", "00002.json"]
    vocabulary = contracts(tmp_path)["00002.json"]["vocabulary"]
    assert [info["name"] for info in vocabulary] == ["beagle", "siamese", "akita"]
    # The label is part of the contract now.
    assert ingest(config(tmp_path, photos)) == manifest


def test_extend_without_new_labels_keeps_the_contract(tmp_path, write_folder):
    root = write_folder(tmp_path / "photos", {"a": 20, "b": 20})
    first = ingest(config(tmp_path, root))
    assert ingest(config(tmp_path, root, "extend")) == first
    assert list(contracts(tmp_path)) == ["00001.json"]


def test_removed_class_is_refused(tmp_path, write_folder):
    root = write_folder(tmp_path / "photos", {"a": 20, "b": 20, "c": 20})
    ingest(config(tmp_path, root))
    for path in (root / "b").iterdir():
        path.unlink()
    with pytest.raises(PetsError, match=r"class 'b' has 0 photos.*source\.name"):
        ingest(config(tmp_path, root))


def test_each_data_set_has_its_own_contract(tmp_path, photos):
    source = config(tmp_path, photos)
    named = source.source.model_copy(update={"name": "three"})
    manifest = ingest(source.model_copy(update={"source": named}))
    assert labels(manifest) == {"akita": 0, "beagle": 1, "siamese": 2}
    assert contracts(tmp_path, "three")["00001.json"]["version"] == 1


def test_a_changed_species_is_refused(tmp_path, jpeg, write_oxford):
    def source(species):
        lines = "".join(f"Manx_{n} 1 {species} 1\nPug_{n} 2 2 1\n" for n in range(20))
        lists = {"trainval.txt": lines, "test.txt": f"Manx_90 1 {species} 1\nPug_90 2 2 1\n"}
        names = [f"{c}_{n}.jpg" for c in ("Manx", "Pug") for n in (*range(20), 90)]
        folder = tmp_path / f"version {species}" / "pets"
        write_oxford(folder, [(n, jpeg(number)) for number, n in enumerate(names)], lists)
        return config(tmp_path, folder)

    assert ingest(source(1)).vocabulary[0] == ClassInfo(name="Manx", species="cat")
    with pytest.raises(PetsError, match=r"'Manx' has species dog, in earlier versions cat.*name"):
        ingest(source(2))


@pytest.mark.parametrize("name", ["photos [2024]", "a?b*c", "photos{1}"])
def test_contract_applies_to_names_with_glob_characters(tmp_path, write_folder, name):
    root = write_folder(tmp_path / name, {"a": 20, "b": 20})
    first = ingest(config(tmp_path, root))
    assert ingest(config(tmp_path, root)) == first
    write_folder(root, {"a": 20, "b": 20, "c": 20})
    with pytest.raises(PetsError, match="outside the contract"):
        ingest(config(tmp_path, root))
    second = ingest(config(tmp_path, root, "extend"))
    assert second.parent == first.fingerprint
    assert [m.fingerprint for m in list_versions(str(tmp_path / "store"), first.name)] == [
        first.fingerprint, second.fingerprint,
    ]  # fmt: skip


# --- unit tests -----------------------------------------------------------------------------------

KNOWN = Contract.of(3, (ClassInfo(name="m", species="cat"), ClassInfo(name="b", species="dog")))


def test_known_labels_need_no_new_contract():
    for classes in ({"b": "dog", "m": "cat"}, {"b": "dog"}, {}):
        assert reconcile(KNOWN, classes, extend=True) == (KNOWN, [])


def test_new_labels_are_returned_or_appended_in_source_order():
    classes = {"z": "cat", "b": "dog", "a": None}
    assert reconcile(KNOWN, classes, extend=False) == (KNOWN, ["z", "a"])
    contract, new = reconcile(KNOWN, classes, extend=True)
    assert (contract.version, contract.vocabulary[:2], new) == (4, KNOWN.vocabulary, [])
    assert contract.vocabulary[2:] == (ClassInfo(name="z", species="cat"), ClassInfo(name="a"))


def test_new_schema_version_creates_a_new_contract_version():
    old = KNOWN.model_copy(update={"schema_version": SCHEMA_VERSION - 1})
    contract, new = reconcile(old, {"b": "dog"}, extend=False)
    assert (contract, new) == (Contract.of(4, KNOWN.vocabulary), [])


def test_newest_contract_is_loaded_and_none_is_overwritten(tmp_path):
    root = str(tmp_path)
    assert load_contract(root) is None
    for version in (9, 10, 2, 10):
        save_contract(root, Contract.of(version, KNOWN.vocabulary))
    with pytest.raises(PetsError, match="a concurrent ingest has stored version 10"):
        save_contract(root, Contract.of(10, ()))
    assert load_contract(root) == Contract.of(10, KNOWN.vocabulary)


def test_damaged_contract_raises_an_error_with_its_path(tmp_path):
    (tmp_path / "contracts").mkdir()
    (tmp_path / "contracts/00001.json").write_text('{"version": 1')
    with pytest.raises(PetsError, match=r"contracts/00001\.json is damaged"):
        load_contract(str(tmp_path))
