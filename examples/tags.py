"""Fine-tune on tags: each photo has any number of them.

python examples/tags.py

The built-in sample has a species and a breed as tags.
"""

import pets


def main() -> None:
    """Train, and print the tags that are predicted worst."""
    run = pets.fine_tune(source={"targets": "tags"}, model={"image_size": 128}, train={"epochs": 2})
    print({name: round(value, 3) for name, value in run.metrics.items()})
    print(run.table("tags").head())


if __name__ == "__main__":
    main()
