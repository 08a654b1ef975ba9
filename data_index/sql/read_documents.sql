-- What steps of one run read of its documents, for repeats.sql. {taken} is a condition on step and attempt, {length} the
-- tokens of a row that the model reads, {documents} names the documents table in force.

CREATE TEMP VIEW hashes AS
SELECT document_id AS id, num_tokens, sha256 FROM document_hashes WHERE documents = {documents};

-- Tokens first .. stop of document `id` that were read at a position. A document that runs on from the file before begins
-- in the row.
CREATE TEMP VIEW readings AS
SELECT s.document_id AS id, b.step, b.attempt, b.position, b.instance,
       CASE WHEN p.instance IS NOT NULL THEN p.start + s.start - p.first_token - d.start
            WHEN d.file = b.file THEN b."offset" + s.start - d.start
            ELSE 0 END AS first,
       first + least(s.stop, {length}) - s.start AS stop
FROM batches b
JOIN spans s ON s.instance = b.instance AND s.start < {length}
JOIN documents d ON d.document_id = s.document_id
LEFT JOIN pieces p ON p.instance = s.instance AND p.file = d.file
    AND p.first_token <= s.start AND s.start < p.first_token + p.stop - p.start
WHERE {taken};

-- Every text: where it lies, and what is told of it.
CREATE TEMP VIEW texts AS
SELECT document_id AS id, file, start, "end" AS stop, source AS told FROM documents;
