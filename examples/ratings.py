"""Train a recommender on ratings of items by users.

python examples/ratings.py [path/to/ratings.csv]

Without a path, built-in ratings are used.
"""

import sys

from flows.collab import collab_flow
from pets_core.ratings.config import RatingsConfig
from pets_core.ratings.recommend import Recommender


def main(url: str | None = None) -> None:
    """Train, and list the items with the highest predicted ratings for an unknown user."""
    report = collab_flow(RatingsConfig.model_validate({"ratings": {"url": url}}))
    print(f"{report.primary.name} {report.primary.format()}")
    for found in Recommender(report.model_url).recommend(None, 5):
        print(f"{found.rating:.2f}  {found.title}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
