-- Views and macros stored inside every index.duckdb, so that `duckdb index.duckdb` alone answers `from batch(137)`.
-- What stands in braces is a number, or a union over the epochs of the statement in the file of that name.

CREATE OR REPLACE VIEW consumption AS {consumption};

CREATE OR REPLACE VIEW consumed_instances AS {consumed_instances};

-- Where an instance begins: file and offset, in tokens from the file's start; one that is put together from pieces is
-- where its first piece is. Files are found by blocks of instances, which a hash join does; a join by range sorts.
CREATE OR REPLACE MACRO block_of(instance) AS instance // {file_block};

CREATE OR REPLACE MACRO offset_of(instance, first_instance, first_token) AS
first_token + (instance - first_instance) * {sequence_length};

-- One row for each row of each step, in batch order.
CREATE OR REPLACE VIEW batches AS
SELECT c.step, c.attempt, c.epoch, c.position, c.instance, coalesce(p.file, f.file) AS file,
       coalesce(p.start, offset_of(c.instance, f.first_instance, f.first_token)) AS "offset",
       {sequence_length} AS num_tokens
FROM consumption c
LEFT JOIN file_blocks f
  ON f.block = block_of(c.instance) AND c.instance >= f.first_instance AND c.instance < f.stop_instance
LEFT JOIN (FROM pieces WHERE first_token = 0) p ON p.instance = c.instance
WHERE c.step IS NOT NULL;

-- One row for each time an instance was read; an epoch that never read it gives a row with step NULL.
CREATE OR REPLACE VIEW instances AS
SELECT c.instance, c.epoch, c.step, c.attempt, c.position, coalesce(p.file, f.file) AS file,
       coalesce(p.start, offset_of(c.instance, f.first_instance, f.first_token)) AS "offset"
FROM consumed_instances c
LEFT JOIN file_blocks f
  ON f.block = block_of(c.instance) AND c.instance >= f.first_instance AND c.instance < f.stop_instance
LEFT JOIN (FROM pieces WHERE first_token = 0) p ON p.instance = c.instance;

CREATE OR REPLACE MACRO batch(s) AS TABLE SELECT * FROM batches WHERE step = s ORDER BY attempt, position;

CREATE OR REPLACE MACRO steps_of_instance(i) AS TABLE SELECT * FROM instances WHERE instance = i ORDER BY step;

-- Every reading of many instances at once.
CREATE OR REPLACE MACRO steps_of_instances(instances) AS TABLE
SELECT c.instance, c.epoch, c.step, c.attempt, c.position, coalesce(p.file, f.file) AS file,
       coalesce(p.start, offset_of(c.instance, f.first_instance, f.first_token)) AS "offset"
FROM ({readings_of}) c
LEFT JOIN file_blocks f
  ON f.block = block_of(c.instance) AND c.instance >= f.first_instance AND c.instance < f.stop_instance
LEFT JOIN (FROM pieces WHERE first_token = 0) p ON p.instance = c.instance
ORDER BY c.step, c.attempt, c.position;
