"""What is probably wrong with the images and labels of a dataset, by its features: copies, wrong labels, outliers."""
