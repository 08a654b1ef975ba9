-- What steps of one run read of its instances, for repeats.sql. {taken} is a condition on step and attempt.

CREATE TEMP VIEW hashes AS SELECT instance AS id, num_tokens, sha256 FROM instance_hashes;

CREATE TEMP VIEW readings AS
SELECT instance AS id, step, attempt, position, instance, 0 AS first, num_tokens AS stop FROM batches WHERE {taken};

CREATE TEMP VIEW texts AS SELECT instance AS id, any_value(file) AS told FROM batches WHERE {taken} GROUP BY instance;
