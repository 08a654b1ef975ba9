-- Views and macros stored inside every index.duckdb, so that `duckdb index.duckdb` alone answers `from batch(137)`.
-- {consumption} and {inverse} are unions over the epochs' tables.

CREATE VIEW consumption AS {consumption};

CREATE VIEW consumed_instances AS {inverse};

-- One row for each row of each step, in batch order. "offset" counts tokens from the file's start; an instance that is
-- put together from pieces is where its first piece is.
CREATE VIEW batches AS
SELECT c.step, c.attempt, c.epoch, c.position, c.instance, coalesce(p.file, f.file) AS file,
       coalesce(p.start, f.first_token + (c.instance - f.first_instance) * {sequence_length}) AS "offset",
       {sequence_length} AS num_tokens
FROM consumption c
ASOF LEFT JOIN (FROM files WHERE num_instances > 0) f ON c.instance >= f.first_instance
LEFT JOIN (FROM pieces WHERE first_token = 0) p ON p.instance = c.instance
WHERE c.step IS NOT NULL;

-- One row for each time an instance was read; an epoch that never read it gives a row with step NULL.
CREATE VIEW instances AS
SELECT c.instance, c.epoch, c.step, c.attempt, c.position, coalesce(p.file, f.file) AS file,
       coalesce(p.start, f.first_token + (c.instance - f.first_instance) * {sequence_length}) AS "offset"
FROM consumed_instances c
ASOF LEFT JOIN (FROM files WHERE num_instances > 0) f ON c.instance >= f.first_instance
LEFT JOIN (FROM pieces WHERE first_token = 0) p ON p.instance = c.instance;

CREATE MACRO batch(s) AS TABLE SELECT * FROM batches WHERE step = s ORDER BY attempt, position;

CREATE MACRO steps_of_instance(i) AS TABLE SELECT * FROM instances WHERE instance = i ORDER BY step;
