"""Operations: what keeps the pipelines running, tells how they stand, and clears away what is old."""
