-- Documents as texts: where each lies and what is told of it, and its hash if {documents}, the table in force, named it.
CREATE TEMP VIEW texts AS SELECT document_id AS id, file, start, "end" AS stop, source AS told FROM documents;

CREATE TEMP VIEW hashes AS
SELECT document_id AS id, num_tokens, sha256 FROM document_hashes WHERE documents = {documents};
