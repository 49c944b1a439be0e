"""Fine-tune on numbers in a table, such as weights.

python examples/numbers_of_table.py path/to/weights.csv weight kg

The table has a column `image` with paths of photos, and a column with the numbers.
"""

import sys

import pets


def main(table: str, column: str, unit: str) -> None:
    """Train, and print the errors of the model."""
    run = pets.fine_tune(
        table,
        source={"targets": "numbers", "number_columns": [column], "units": [unit]},
        model={"image_size": 128},
    )
    print({name: round(value, 3) for name, value in run.metrics.items()})


if __name__ == "__main__":
    main(*sys.argv[1:4])
