-- What steps of one run read of its instances, for repeats.sql. {taken} is a condition on step and attempt.
SELECT instance AS id, step, attempt, position, instance, 0 AS first, num_tokens AS stop FROM batches WHERE {taken}
