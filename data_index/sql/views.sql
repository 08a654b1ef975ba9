-- Views of the joined connection that stand on other views. The base views (runs, segments, files, checkpoints, batches,
-- instances, documents, masks, metrics, consumed, forks) are made per run in store.py; a view with no rows yet is an
-- empty table with its columns.

-- Pieces of documents inside instances: tokens start .. stop (end exclusive) of the instance.
CREATE VIEW spans AS
SELECT i.run, i.instance, d.document_id,
       greatest(d.start - i."offset", 0) AS start, least(d."end" - i."offset", i.sequence_length) AS stop
FROM (SELECT f.run, f.file, unnest(range(f.first_instance, f.first_instance + f.num_instances)) AS instance,
             (instance - f.first_instance) * r.sequence_length AS "offset", r.sequence_length
      FROM files f JOIN runs r ON r.run = f.run) i
JOIN documents d
  ON d.run = i.run AND d.file = i.file AND d.start < i."offset" + i.sequence_length AND d."end" > i."offset";

CREATE VIEW tags AS SELECT run, document_id, unnest(tags) AS tag FROM documents;

CREATE MACRO batch(r, s) AS TABLE SELECT * FROM batches WHERE run = r AND step = s ORDER BY attempt, position;

CREATE MACRO steps_of_instance(r, i) AS TABLE SELECT * FROM instances WHERE run = r AND instance = i ORDER BY step;
