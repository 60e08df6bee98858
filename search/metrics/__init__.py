"""What an image set is worth: features, Frechet distance, similarity, and how sure the numbers are."""
