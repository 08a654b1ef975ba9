SELECT {epoch}::INTEGER AS epoch, instance::BIGINT AS instance, step, 1::INTEGER AS attempt, rowid AS position
FROM {index}order_{epoch}
UNION ALL
SELECT {epoch}::INTEGER, instance, step, attempt, position FROM {index}rereadings_{epoch}
