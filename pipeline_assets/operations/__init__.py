"""Operations: what keeps the pipelines running, reports their state and removes what is old."""
