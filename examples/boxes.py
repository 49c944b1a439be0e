"""Fine-tune on one box per photo: the head in the built-in sample.

python examples/boxes.py
"""

import pets


def main() -> None:
    """Train, and compare the model with always predicting the mean box."""
    run = pets.fine_tune(source={"targets": "box"}, model={"image_size": 128}, train={"epochs": 4})
    primary = run.report.primary
    print(f"{primary.name} {primary.value:.3f}, mean box {primary.baseline:.3f}")


if __name__ == "__main__":
    main()
