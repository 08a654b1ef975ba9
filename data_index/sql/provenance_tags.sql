-- Tags of documents by where they came from. Of a source path the folders count, of an address (in `source` or
-- `external_id`) the host. What all documents of the run have in common tells nothing and is left out, and so is a folder
-- or host of a single document.
--   source:<name>   the folder after `sources` (Dolma's layout), else the first that tells documents apart, else the last
--   path:<folder>   the other folders that tell documents apart
--   host:<host>

WITH described AS (
    SELECT DISTINCT document_id, source, external_id FROM documents
    WHERE source IS NOT NULL OR external_id IS NOT NULL),
sources AS (SELECT source, count(*) AS documents FROM described WHERE source IS NOT NULL GROUP BY source),
split AS (
    SELECT source, documents,
           list_filter(string_split(regexp_replace(regexp_replace(source, '^https?://[^/?#]*', ''),
                                                   '^[A-Za-z][A-Za-z0-9+.-]*://|[?#].*$', '', 'g'), '/'),
                       lambda part: part NOT IN ('', '.', '..')) AS parts
    FROM sources),
placed AS (SELECT source, documents, CASE WHEN len(parts) > 1 THEN parts[:-2] ELSE parts END AS folders FROM split),
folders AS (SELECT source, documents, unnest(folders) AS folder, generate_subscripts(folders, 1) AS place FROM placed),
counted AS (
    SELECT folder, sum(documents) AS documents FROM (SELECT DISTINCT source, documents, folder FROM folders)
    GROUP BY folder HAVING sum(documents) > 1),
telling AS (SELECT folder FROM counted WHERE documents < (SELECT sum(documents) FROM sources)),
named AS (
    SELECT source, coalesce(min_by(folder, place) FILTER (after_sources),
                            min_by(folder, place) FILTER (folder IN (FROM telling)),
                            max_by(folder, place) FILTER (folder IN (SELECT folder FROM counted))) AS name
    FROM (SELECT *, lag(folder) OVER (PARTITION BY source ORDER BY place) = 'sources' AS after_sources FROM folders)
    GROUP BY source),
others AS (
    SELECT DISTINCT f.source, f.folder FROM folders f JOIN named n USING (source)
    WHERE f.folder IN (FROM telling) AND f.folder IS DISTINCT FROM n.name),
hosts AS (
    SELECT DISTINCT document_id, lower(regexp_extract(address, '^https?://(?:[^/?#@]*@)?([^/?#:@]+)', 1)) AS host
    FROM (SELECT document_id, unnest([source, external_id]) AS address FROM described)
    WHERE address LIKE 'http%://%'),
telling_hosts AS (
    SELECT host FROM hosts WHERE host <> '' GROUP BY host
    HAVING count(*) > 1 AND count(*) < (SELECT count(DISTINCT document_id) FROM documents))
SELECT d.document_id, 'source:' || n.name AS tag FROM described d JOIN named n USING (source) WHERE n.name IS NOT NULL
UNION ALL
SELECT d.document_id, 'path:' || o.folder FROM described d JOIN others o USING (source)
UNION ALL
SELECT document_id, 'host:' || host FROM hosts WHERE host IN (FROM telling_hosts)
ORDER BY ALL
