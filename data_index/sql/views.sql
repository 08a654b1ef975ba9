-- Views and macros of the joined connection that stand on other views. The base views (runs, segments, files,
-- checkpoints, batches, instances, pieces, documents, masks, metrics, consumed, forks) are made per run in store.py; a
-- view with no rows yet is an empty table with its columns. Each statement begins a line with CREATE and ends one with a
-- semicolon (data_index/view_catalog.py takes them apart).

-- Pieces of documents inside instances: tokens start .. stop (end exclusive) of the instance. Instances cut from files
-- follow from a document's place by arithmetic, so that one document's are found without looking at others; those that
-- are put together from pieces are found piece by piece.
CREATE VIEW spans AS
WITH cut AS (
    SELECT d.run, d.document_id, d.start, d."end", f.first_instance, f.first_token, r.sequence_length AS length,
           unnest(range(f.first_instance + greatest(d.start - f.first_token, 0) // length,
                        least(f.first_instance + (d."end" - 1 - f.first_token) // length + 1,
                              f.first_instance + f.num_instances))) AS instance
    FROM documents d JOIN files f ON f.run = d.run AND f.file = d.file JOIN runs r ON r.run = d.run
    WHERE d."end" > greatest(d.start, f.first_token))
SELECT c.run, c.instance, c.document_id,
       greatest(c.start - c.first_token - (c.instance - c.first_instance) * c.length, 0) AS start,
       least(c."end" - c.first_token - (c.instance - c.first_instance) * c.length, c.length) AS stop
FROM cut c ANTI JOIN pieces p ON p.run = c.run AND p.instance = c.instance
UNION ALL
SELECT p.run, p.instance, d.document_id, p.first_token + greatest(d.start - p.start, 0) AS start,
       p.first_token + least(d."end", p.stop) - p.start AS stop
FROM pieces p JOIN documents d
  ON d.run = p.run AND d.file = p.file AND d.start < p.stop AND d."end" > p.start AND d."end" > d.start;

CREATE VIEW forks AS SELECT * FROM runs WHERE parent IS NOT NULL;

CREATE VIEW tags AS SELECT run, document_id, unnest(tags) AS tag FROM documents;

CREATE MACRO batch(r, s) AS TABLE SELECT * FROM batches WHERE run = r AND step = s ORDER BY attempt, position;

CREATE MACRO steps_of_instance(r, i) AS TABLE SELECT * FROM instances WHERE run = r AND instance = i ORDER BY step;
