"""Everything the product knows about data, models, training and evaluation; needs no Prefect."""
