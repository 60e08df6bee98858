"""From the records of a search to fronts, figures and one self-contained HTML report."""
