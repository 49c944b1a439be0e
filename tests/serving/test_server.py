"""The model server: predictions, batches, limits, and the alias it follows."""

import io
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image
from tiny_model import promote_model, write_tiny_model

import pets
from pets.model import ModelReference
from pets.serving import models
from pets.serving.models import PhotoModel
from pets_core.errors import PetsError
from pets_core.inference.predict import Predictor, open_model

CLASSES = ("Birman", "Pug", "Sphynx", "Boxer")
GARBAGE = b"no photo"


def expected(model_url: str, photos: list[bytes], top: int = 3) -> list[tuple]:
    return [prediction.top for prediction in pets.load(model_url).predict(photos, top=top)]


def top_of(prediction: dict) -> tuple:
    return tuple((label, pytest.approx(share, abs=1e-5)) for label, share in prediction["top"])


def test_image_in_the_body_is_predicted_as_by_the_python_interface(served, model_url, photos):
    response = served.client.post("/predict?top=2", content=photos[0])
    assert response.status_code == 200
    assert response.json()["model"] == {"url": model_url}
    (found,) = response.json()["predictions"]
    assert found.keys() == {"photo", "label", "probability", "top"}
    assert expected(model_url, photos[:1], 2) == [top_of(found)]
    assert found["label"] == found["top"][0][0]


def test_files_of_a_form_are_predicted_in_order_with_unreadable_ones(served, model_url, photos):
    files = [
        ("photo", (f"{n}.png", data)) for n, data in enumerate([photos[1], GARBAGE, photos[2]])
    ]
    before = served.metric('pets_serve_photos_total{result="unreadable"}')
    response = served.client.post("/predict", files=files)
    assert response.status_code == 200
    first, garbage, last = response.json()["predictions"]
    assert [first["photo"], garbage["photo"], last["photo"]] == ["0.png", "1.png", "2.png"]
    assert [top_of(first), top_of(last)] == expected(model_url, photos[1:3])
    assert garbage.keys() == {"photo", "error"}
    assert garbage["error"].startswith("not an image")
    assert served.metric('pets_serve_photos_total{result="unreadable"}') == before + 1


def test_concurrent_requests_are_batched_and_get_their_own_results(served, model_url, photos):
    batches = served.metric("pets_serve_batch_photos_count")

    def predict(number: int) -> tuple:
        data = photos[number % len(photos)]
        top = 1 + number % 4
        (found,) = served.client.post(f"/predict?top={top}", content=data).json()["predictions"]
        return top_of(found)

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(predict, range(240)))
    wanted = expected(model_url, photos, 4)
    assert [wanted[n % len(photos)][: 1 + n % 4] for n in range(240)] == found
    assert served.metric("pets_serve_batch_photos_count") - batches < 240


def test_activation_maps_are_returned_on_request(served, photos):
    files = [("a", ("a", photos[0])), ("b", ("b", GARBAGE))]
    found, garbage = served.client.post("/predict?maps=true", files=files).json()["predictions"]
    assert found["map"].startswith("data:image/jpeg;base64,")
    assert "map" not in garbage


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ({"content": b""}, 400, "the body is empty: send an image, or a form with files"),
        ({"data": {"a": "b"}, "files": {}}, 422, None),
        ({"files": [("f", (str(n), b"x")) for n in range(9)]}, 400, "Too many files"),
        ({"content": GARBAGE}, 422, None),
        ({"content": b"\0" * 1_000_001}, 413, "the body is larger than 1 MB: send fewer"),
        ({"files": {"f": b"\0" * 1_000_001}}, 413, "the body is larger than 1 MB"),
        ({"content": iter([b"\0" * 600_000] * 2)}, 413, "the body is larger than 1 MB"),
        ({"content": b"x", "params": {"top": 0}}, 422, "greater than or equal to 1"),
        ({"content": b"--x", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
    ],
)  # fmt: skip
def test_invalid_requests_are_refused(served, request_, status, message):
    response = served.client.post("/predict", **request_)
    assert response.status_code == status, response.text
    if message is None:
        assert "error" in response.json()["predictions"][0]
    else:
        assert message in str(response.json()["detail"])
    assert served.client.get("/ready").json() == {"ready": True}


def test_body_of_200_mb_is_refused_with_an_answer(served):
    blocks = iter([bytes(1_000_000)] * 200)
    response = served.client.post("/predict", content=blocks)
    assert response.status_code == 413
    with httpx.Client(base_url=served.url, timeout=60) as client:
        response = client.post("/predict", content=bytes(200_000_000))
    assert response.status_code == 413


def test_other_paths_are_not_found_and_counted_as_one(served):
    before = served.metric('pets_serve_requests_total{path="other",status="404"}')
    assert served.client.get("/nothing").status_code == 404
    assert served.client.get("/else").status_code == 404
    assert served.metric('pets_serve_requests_total{path="other",status="404"}') == before + 2
    assert served.client.get("/predict").status_code == 405
    response = served.client.get("/recommend")
    assert (response.status_code, response.json()["detail"]) == (
        404, "this model predicts photos: use POST /predict"
    )  # fmt: skip


def test_health_and_model_are_shown(served, model_url):
    assert served.client.get("/health").json() == {"status": "ok"}
    found = served.client.get("/model").json()
    assert (found["model"], found["has_maps"], found["geometry"]) == (
        {"url": model_url},
        True,
        None,
    )
    assert [each["name"] for each in found["card"]["vocabulary"]] == list(CLASSES)
    assert served.metric(f'pets_serve_model_info{{alias="",run_id="",url="{model_url}"}}') == 1


def test_token_is_required_for_the_model_only(serve, model_url, photos):
    served = serve(model_url, token="secret")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
        assert served.client.post("/predict", content=photos[0], headers=headers).status_code == 401
        assert served.client.get("/model", headers=headers).status_code == 401
    right = {"Authorization": "Bearer secret"}
    assert served.client.post("/predict", content=photos[0], headers=right).status_code == 200
    for path in ("/", "/health", "/ready", "/metrics"):
        assert served.client.get(path).status_code == 200


def test_slow_body_ends_with_408(serve, model_url, monkeypatch):
    monkeypatch.setattr("pets.serving.limits._BODY_SECONDS", 0.2)
    served = serve(model_url)
    sent = threading.Event()

    def body() -> Iterator[bytes]:
        yield b"x"
        sent.wait(30)

    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(served.client.post, "/predict", content=body())
        while not served.metric('pets_serve_requests_total{path="/predict",status="408"}'):
            time.sleep(0.02)
        sent.set()
        response = pending.result()
    assert response.status_code == 408
    assert "did not arrive within 0.2 s" in response.json()["detail"]


def model_threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("model")]


def test_alias_is_followed_without_losing_a_request(serve, tmp_path, photos, monkeypatch):
    opened = []

    def open_and_watch(*arguments):
        predictor = open_model(*arguments)
        opened.append(weakref.ref(predictor.forward))
        return predictor

    monkeypatch.setattr("pets_core.inference.predict.open_model", open_and_watch)
    store = tmp_path / "store"
    for seed, run_id in enumerate(("a1", "b2")):
        write_tiny_model(store / f"runs/{run_id}/model", CLASSES, seed=seed)
    promote_model(store, "a1")
    served = serve("cats@champion", store=str(store), poll_seconds=0.1)
    urls = {run_id: str(store / f"runs/{run_id}/model") for run_id in ("a1", "b2")}
    wanted = {run_id: expected(url, photos[:1]) for run_id, url in urls.items()}
    assert wanted["a1"] != wanted["b2"]
    moved = threading.Event()

    def predict() -> list[tuple[str, tuple]]:
        """Predict until some requests after the change are done."""
        found, remaining = [], 20
        with httpx.Client(base_url=served.url, timeout=60) as client:
            while remaining:
                response = client.post("/predict", content=photos[0])
                assert response.status_code == 200
                body = response.json()
                run_id = body["model"]["run_id"]
                found.append((run_id, top_of(body["predictions"][0])))
                remaining -= run_id == "b2"
                if len(found) == 20:
                    moved.set()
        return found

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(predict) for _ in range(4)]
        assert moved.wait(60)
        threads = len(model_threads())
        promote_model(store, "b2")
        answers = [each.result(120) for each in running]
    for found in answers:
        runs = [run_id for run_id, _ in found]
        assert runs == sorted(runs), "requests return to the earlier model"
        assert all([top] == wanted[run_id] for run_id, top in found)
    assert served.metric('pets_serve_model_updates_total{result="updated"}') == 1
    assert len(model_threads()) <= threads, "the thread of the earlier model still runs"
    assert opened[-1]() is not None
    assert opened[0]() is None, "the earlier model is in memory"


def test_model_that_cannot_be_opened_leaves_the_current_one(serve, tmp_path, photos):
    store = tmp_path / "store"
    for run_id in ("a1", "b2"):
        write_tiny_model(store / f"runs/{run_id}/model", CLASSES)
    promote_model(store, "a1")
    served = serve("cats", store=str(store), poll_seconds=0.05)
    weights = store / "runs/b2/model/model.safetensors"
    stored = weights.read_bytes()
    weights.write_bytes(stored[:100])
    promote_model(store, "b2")
    while served.metric('pets_serve_model_updates_total{result="failed"}') < 2:
        time.sleep(0.02)
    response = served.client.post("/predict", content=photos[0])
    assert (response.status_code, response.json()["model"]["run_id"]) == (200, "a1")
    weights.write_bytes(stored)
    while served.client.get("/model").json()["model"]["run_id"] != "b2":
        time.sleep(0.02)


def test_unknown_model_is_refused_before_the_server_starts(serve, tmp_path):
    with pytest.raises(PetsError, match="no such run"):
        serve("nothing", store=str(tmp_path))


@pytest.mark.parametrize(
    ("targets", "labels", "numbers", "geometry"),
    [
        ("tags", CLASSES, (), None),
        ("numbers", (), ("weight", "age"), None),
        ("points", (), ("x1", "y1"), "points"),
        ("box", (), ("xmin", "ymin", "xmax", "ymax"), "box"),
    ],
)
def test_other_targets_are_served(serve, tmp_path, photos, targets, labels, numbers, geometry):
    url = write_tiny_model(tmp_path / "model", labels, targets=targets, numbers=numbers)
    served = serve(url)
    (found,) = served.client.post("/predict?maps=true", content=photos[0]).json()["predictions"]
    (wanted,) = pets.load(url).predict(photos[0])
    assert "map" not in found
    if labels:
        assert tuple(found["tags"]) == wanted.tags
        assert top_of(found) == wanted.top
    else:
        assert found["numbers"] == pytest.approx(wanted.numbers, rel=1e-4)
        assert "top" not in found
    assert served.client.get("/model").json()["geometry"] == geometry


def test_photos_of_closed_connections_are_not_predicted(serve, model_url, photos, monkeypatch):
    is_running, may_go_on, sizes = threading.Event(), threading.Event(), []
    run = PhotoModel._run

    def wait_and_run(self, items):
        sizes.append(len(items))
        is_running.set()
        assert may_go_on.wait(60)
        return run(self, items)

    monkeypatch.setattr(PhotoModel, "_run", wait_and_run)
    served = serve(model_url)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(served.client.post, "/predict", content=photos[0])
        assert is_running.wait(60)
        with (
            httpx.Client(base_url=served.url, timeout=httpx.Timeout(60, read=0.5)) as client,
            pytest.raises(httpx.ReadTimeout),
        ):
            client.post("/predict", content=photos[1])
        while not served.metric('pets_serve_requests_total{path="/predict",status="499"}'):
            time.sleep(0.02)
        may_go_on.set()
        assert first.result().status_code == 200
    assert served.client.post("/predict", content=photos[2]).status_code == 200
    assert sizes == [1, 1], "the photo of the closed connection was predicted"


def test_bodies_wait_until_there_is_memory(serve, model_url, photos, monkeypatch):
    monkeypatch.setattr("pets.serving.app._BODY_BYTES", 300)
    sizes = []
    run = PhotoModel._run
    monkeypatch.setattr(
        PhotoModel, "_run", lambda self, items: sizes.append(len(items)) or run(self, items)
    )
    served = serve(model_url)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda data: served.client.post("/predict", content=data), photos))
    assert {answer.status_code for answer in answers} == {200}
    assert set(sizes) == {1}, "each body is larger than half of the memory"


def test_large_photos_are_decoded_one_at_a_time(served, monkeypatch):
    held = []
    decode = Predictor.decode

    def record(self, photo):
        held.append(models._LARGE_PHOTO.locked())
        return decode(self, photo)

    monkeypatch.setattr(Predictor, "decode", record)
    large, jpeg = io.BytesIO(), io.BytesIO()
    picture = Image.new("L", (4000, 2001))
    picture.save(large, "PNG")
    picture.save(jpeg, "JPEG")
    for body in (large.getvalue(), jpeg.getvalue(), GARBAGE):
        served.client.post("/predict", content=body)
    assert held == [True, False, False]


def test_failed_map_leaves_the_predictions_of_a_batch(served, photos, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("pets_core.evaluation.activation.activation_maps", fail)
    response = served.client.post("/predict?maps=true", content=photos[0])
    assert response.status_code == 200
    assert "map" not in response.json()["predictions"][0]


def test_names_and_addresses_without_secrets_are_answered(served, photos):
    form = (
        b'--b\r\nContent-Disposition: form-data; name="f"; filename="\\ud800.png"\r\n\r\n'
        + photos[0]
        + b"\r\n--b--\r\n"
    )
    kind = "multipart/form-data; boundary=b; charset=unicode_escape"
    response = served.client.post("/predict", content=form, headers={"content-type": kind})
    assert response.status_code == 200, response.text
    signed = ModelReference("https://user:password@host/model.onnx?signature=secret")
    assert signed.printable().url == "https://host/model.onnx"


def test_model_of_another_version_is_refused(serve, tmp_path):
    url = write_tiny_model(tmp_path / "model", CLASSES)
    card = Path(url, "model.json")
    card.write_text(card.read_text().replace('"format_version": 2', '"format_version": 3'))
    with pytest.raises(PetsError, match=r"model\.json has format_version 3, which this version"):
        serve(url)
