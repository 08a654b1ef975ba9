-- Views of the joined connection that stand on other views. The base views (runs, segments, files, checkpoints, batches,
-- instances, pieces, documents, edit_masks, hidden, exposures, passed_over, metrics, consumed, forks) are made per run in store.py; a view with no rows yet is an
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

CREATE VIEW tags AS SELECT run, document_id, unnest(tags) AS tag FROM documents;

CREATE MACRO batch(r, s) AS TABLE SELECT * FROM batches WHERE run = r AND step = s ORDER BY attempt, position;

CREATE MACRO steps_of_instance(r, i) AS TABLE SELECT * FROM instances WHERE run = r AND instance = i ORDER BY step;

-- What left the loss: by an edit of the plan (its own reasons), and by the trainer, once `exposures` has gone through the
-- run: instance_filter, label_mask, hidden_token, padding.
CREATE VIEW masks AS FROM edit_masks UNION ALL BY NAME FROM hidden;

-- Steps and data that changed no weight. `skipped`: the trainer consumed the batches and computed nothing. `withheld`: it
-- computed gradients and threw them away. `unread`: positions that were passed over before the step. `logged`: the
-- trainer's log says that it skipped the update.
CREATE VIEW skips AS
FROM passed_over
UNION ALL BY NAME
SELECT m.run, m.step AS first_step, m.step AS last_step, m.attempt::BIGINT AS attempt, 'logged' AS kind, s.epoch,
       s.first_position + (m.step - s.first_step) * s.instances_per_batch AS first_position,
       s.instances_per_batch AS num_instances
FROM metrics m LEFT JOIN segments s
  ON s.run = m.run AND s.attempt = m.attempt AND m.step BETWEEN s.first_step AND s.first_step + s.num_steps - 1
WHERE m.name = 'skipped' AND m.value > 0;

-- Counts up to the last recorded step that is not after step s.
CREATE MACRO exposures(r, s) AS TABLE
SELECT * FROM exposures
WHERE run = r AND step = (SELECT max(step) FROM exposures WHERE run = r AND step <= s) ORDER BY token_id;
