-- Instances as texts: the file in which each begins, and its hash.
CREATE TEMP VIEW texts AS SELECT instance AS id, any_value(file) AS told FROM batches GROUP BY instance;

CREATE TEMP VIEW hashes AS SELECT instance AS id, num_tokens, sha256 FROM instance_hashes;
