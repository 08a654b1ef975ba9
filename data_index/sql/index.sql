-- Views and macros stored inside every index.duckdb, so that `duckdb index.duckdb` alone answers `from batch(137)`.
-- {consumption} and {inverse} are unions over the epochs' tables.

CREATE VIEW consumption AS {consumption};

CREATE VIEW consumed_instances AS {inverse};

-- One row for each row of each step, in batch order. "offset" counts tokens from the file's start.
CREATE VIEW batches AS
SELECT c.step, c.attempt, c.epoch, c.position, c.instance, f.file,
       (c.instance - f.first_instance) * {sequence_length} AS "offset", {sequence_length} AS num_tokens
FROM consumption c ASOF JOIN files f ON c.instance >= f.first_instance
WHERE c.step IS NOT NULL;

-- One row for each time an instance was read; an epoch that never read it gives a row with step NULL.
CREATE VIEW instances AS
SELECT c.instance, c.epoch, c.step, c.attempt, c.position, f.file,
       (c.instance - f.first_instance) * {sequence_length} AS "offset"
FROM consumed_instances c ASOF JOIN files f ON c.instance >= f.first_instance;

CREATE MACRO batch(s) AS TABLE SELECT * FROM batches WHERE step = s ORDER BY attempt, position;

CREATE MACRO steps_of_instance(i) AS TABLE SELECT * FROM instances WHERE instance = i ORDER BY step;
