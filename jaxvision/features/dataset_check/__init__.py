"""The check of a dataset by its features: copies, likely wrong labels and outliers."""
