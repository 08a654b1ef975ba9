-- Views of the joined connection that stand on other views. The base views (runs, segments, files, checkpoints, batches,
-- instances, pieces, documents, learned_tags, masks, metrics, consumed, forks) are made per run in store.py; a view with no rows yet is an
-- empty table with its columns.

-- Where the tokens of instances lie: tokens start .. stop of a file, from `first_token` of the row on. Most instances are
-- one piece.
CREATE VIEW placed AS
SELECT run, instance, file, first_token, start, stop FROM pieces
UNION ALL BY NAME
SELECT i.* FROM (
    SELECT f.run, unnest(range(f.first_instance, f.first_instance + f.num_instances)) AS instance, f.file,
           0 AS first_token, f.first_token + (instance - f.first_instance) * r.sequence_length AS start,
           start + r.sequence_length AS stop
    FROM files f JOIN runs r ON r.run = f.run) i
ANTI JOIN pieces p ON p.run = i.run AND p.instance = i.instance;

-- Pieces of documents inside instances: tokens start .. stop (end exclusive) of the instance.
CREATE VIEW spans AS
SELECT i.run, i.instance, d.document_id,
       i.first_token + greatest(d.start - i.start, 0) AS start,
       i.first_token + least(d."end", i.stop) - i.start AS stop
FROM placed i JOIN documents d
  ON d.run = i.run AND d.file = i.file AND d.start < i.stop AND d."end" > i.start;

-- What the trainer's record says and what was learned since, each once.
CREATE VIEW tags AS
SELECT run, document_id, unnest(tags) AS tag FROM documents
UNION
SELECT run, document_id, tag FROM learned_tags;

CREATE MACRO batch(r, s) AS TABLE SELECT * FROM batches WHERE run = r AND step = s ORDER BY attempt, position;

CREATE MACRO steps_of_instance(r, i) AS TABLE SELECT * FROM instances WHERE run = r AND instance = i ORDER BY step;
