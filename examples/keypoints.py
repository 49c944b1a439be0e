"""Fine-tune on keypoints: the centre of each head in the built-in sample.

python examples/keypoints.py
"""

import pets


def main() -> None:
    """Train, and print actual and predicted positions, from -1 to 1 over the photo."""
    run = pets.fine_tune(
        source={"targets": "points"}, model={"image_size": 128}, train={"epochs": 4}
    )
    print({name: round(value, 3) for name, value in run.metrics.items()})
    print(run.predictions().head())


if __name__ == "__main__":
    main()
