"""Table of the commands: what each does, and what it runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["COMMANDS", "EVALUATE_PREDICTIONS", "FLOW_COMMANDS", "GROUP_EXAMPLES", "Command"]


@dataclass(frozen=True)
class Command:
    """One command of `pets`.

    Attributes:
        summary: One line of help.
        examples: Example calls, without `pets` and the name.
        flow: Flow to run, as module:function of `flows`; empty: the module `pets.cli.<name>` has
            `add_arguments` and `run_command`.
        show: Function of `pets.cli` that prints the flow's result, as module:function.
        groups: Groups of settings that the flow uses.
        runs_ranks: Whether the flow starts ranks.
        resumes: Whether an interrupted run is resumed with --resume.
    """

    summary: str
    examples: tuple[str, ...] = ()
    flow: str = ""
    show: str = ""
    groups: tuple[str, ...] = ()
    runs_ranks: bool = True
    resumes: bool = False


_DATA = ("source", "ingest")
_TRAINING = (*_DATA, "model", "transform", "train")

COMMANDS = {
    "run": Command(
        "run the whole pipeline: ingest, find a learning rate, train, evaluate",
        (
            "--source.url path/to/photos",
            "--train.epochs 12 --train.freeze_epochs 1 --gate.promote",
            "--resume path/to/run",
        ),
        "pipeline:pipeline",
        "results:show_evaluation",
        (*_TRAINING, "lr_find", "evaluate", "gate", "registry", "launch"),
        resumes=True,
    ),
    "ingest": Command(
        "convert photos to a Parquet data set",
        (
            "--source.url path/to/photos.zip",
            "--source.url path/to/table.csv --source.label_column breed",
        ),
        "ingest:ingest_flow",
        "datasets:show_manifest",
        _DATA,
        runs_ranks=False,
    ),
    "lr-find": Command(
        "suggest a learning rate",
        ("--source.url path/to/photos", "--lr_find.num_steps 200 --lr_find.suggestion valley"),
        "lr_find:lr_find_flow",
        "results:show_lr_suggestion",
        (*_TRAINING, "lr_find", "launch"),
    ),
    "train": Command(
        "train a model",
        ("--train.base_lr 3e-3 --train.epochs 5", "--resume path/to/run"),
        "train:train_flow",
        "results:show_training",
        (*_TRAINING, "launch"),
        resumes=True,
    ),
    "evaluate": Command(
        "evaluate a stored model or stored predictions",
        (
            "path/to/model --source.url path/to/photos",
            "path/to/model --evaluate.tta_views 4",
            "--from path/to/predictions.parquet",
        ),
        "evaluate:evaluate_flow",
        "results:show_evaluation",
        (*_DATA, "evaluate", "gate", "registry", "launch"),
    ),
    "batch-predict": Command(
        "run a model on many photos and write the predictions to Parquet",
        (
            "path/to/model --source.url path/to/photos --to path/to/predictions",
            "path/to/model --source.url s3://bucket/photos --batch.num_tasks 8",
        ),
        "batch_predict:batch_predict_flow",
        "results:show_batch",
        ("source", "evaluate", "batch", "launch"),
    ),
    "embed": Command(
        "compute embeddings of a data set's photos and find near-duplicates",
        ("path/to/model", "path/to/model --dataset photos --embed.min_similarity 0.9"),
        "embed:embed_flow",
        "results:show_embeddings",
        (*_DATA, "embed", "evaluate", "launch"),
    ),
    "similar": Command(
        "find the photos of a data set that are most similar to a given photo",
        ("photo.jpg --embeddings path/to/embeddings.parquet",),
    ),
    "collab": Command(
        "train a recommender on ratings: ingest, find a learning rate, train, evaluate",
        (
            "--ratings.url path/to/ratings.csv --ratings.items_url path/to/items.csv",
            "--recommender.model neural",
            "--resume path/to/run",
        ),
        "collab:collab_flow",
        "results:show_evaluation",
        ("ratings", "recommender", "lr_find", "train", "gate", "registry", "launch"),
        resumes=True,
    ),
    "recommend": Command(
        "list the items with the highest predicted ratings for a user",
        ("path/to/recommender --user 42 --top 5",),
    ),
    "sweep": Command(
        "train with several backbones and learning rates and compare the results",
        (
            "--sweep.backbones resnet18,resnet34 --sweep.num_trials 8",
            "--resume path/to/run",
        ),
        "sweep:sweep_flow",
        "results:show_sweep",
        (*_TRAINING, "sweep", "launch"),
        resumes=True,
    ),
    "runs": Command(
        "list, show, compare and remove runs",
        ("list", "show latest", "compare latest 3fa9 --to comparison.html", "rm 3fa9 --delete"),
    ),
    "models": Command(
        "list, show, promote and roll back evaluated models",
        ("list", "promote 3fa9", "rollback photos"),
    ),
    "predict": Command(
        "print a model's predictions for photos",
        ("path/to/model photo.jpg", "model.onnx photo.jpg --json --top 5"),
    ),
    "serve": Command(
        "answer HTTP requests with the predictions of a model",
        ("photos@champion --store s3://bucket/pets", "path/to/model --port 8080"),
    ),
    "export": Command("export a model to ONNX", ("path/to/model --to model.onnx",)),
    "push": Command(
        "upload a model or a data set to the Hugging Face Hub",
        ("photos@champion hf://org/name", "photos hf://datasets/org/name --private"),
    ),
    "pull": Command(
        "download a model that `pets push` uploaded",
        ("hf://org/name", "hf://org/name@v1 --to path/to/model"),
    ),
    "deploy": Command(
        "check deployments and apply them to a Prefect server",
        ("--check", "--notify slack-webhook/ops"),
    ),
    "datasets": Command(
        "list, show, compare, verify and clean up stored data sets",
        ("list", "show photos", "diff 3fa9 photos", "verify photos"),
    ),
    "gc": Command(
        "list or remove old runs, checkpoints and data that are no longer needed",
        ("--keep-days 30", "--keep-days 30 --keep-versions 4 --delete"),
    ),
    "join": Command(
        "run training ranks on this machine for the runs of another machine",
        groups=("launch",),
        examples=("--launch.num_machines 2 --launch.rdzv_endpoint 10.0.0.1:29500",),
    ),
    "ui": Command("open a run in the Prefect UI", ("", "FLOW_RUN_ID")),
    "doctor": Command(
        "check versions, device, store, Prefect server, cache and free disk space",
        ("", "--json"),
    ),
    "config": Command(
        "print the JSON Schema of the settings, which editors check YAML files with",
        ("schema", "schema --ratings"),
    ),
    "completion": Command(
        "print a script that completes commands and settings in a shell",
        ("bash", "zsh"),
    ),
}
"""Commands by name, in the order of the help."""

EVALUATE_PREDICTIONS = "evaluate-predictions"
"""Name of `pets evaluate --from`."""
FLOW_COMMANDS = {name: command for name, command in COMMANDS.items() if command.flow} | {
    EVALUATE_PREDICTIONS: replace(
        COMMANDS["evaluate"],
        flow="evaluate_predictions:evaluate_predictions_flow",
        runs_ranks=False,
    )
}
"""Commands that run a flow, also `pets evaluate --from`, which runs another one."""

GROUP_EXAMPLES = {
    "source": ("url", "targets", "test_fraction"),
    "ingest": ("duplicates", "new_labels", "max_quarantined_fraction"),
    "model": ("backbone", "image_size", "weights"),
    "transform": ("policy", "resize", "mixup_alpha"),
    "lr_find": ("num_steps", "suggestion"),
    "train": ("epochs", "base_lr", "recipe"),
    "evaluate": ("split", "tta_views"),
    "gate": ("alias", "promote", "max_error_rate"),
    "registry": ("mlflow_uri",),
    "batch": ("part_photos", "num_tasks"),
    "embed": ("min_similarity",),
    "sweep": ("num_trials", "backbones"),
    "launch": ("num_processes", "num_machines", "deployment"),
    "ratings": ("url", "items_url", "test_fraction"),
    "recommender": ("model", "num_factors"),
}
"""Settings that the help of a command shows of each group. The first is the one that a value given
to the whole group most likely belongs to."""
