"""Fine-tune on photos in class folders, and look at what the model confuses.

python examples/classes.py [path/to/photos]

Without a path, the built-in sample of 37 breeds is used.
"""

import sys

import pets


def main(source: str | None = None) -> None:
    """Train, print the most confused classes, and predict one photo of the test split."""
    run = pets.fine_tune(source, model={"image_size": 128}, train={"epochs": 2})
    print(f"error rate {run.metrics['error rate']:.1%}")
    print(run.most_confused().head())
    run.plot_confusion().save("confusion.png")


if __name__ == "__main__":
    main(*sys.argv[1:2])
