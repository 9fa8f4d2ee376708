{{/* Values that the schema lets pass one by one but that cannot work together. Included once, by the config maps. */}}
{{- define "catena.checks" -}}
{{- if and .Values.nats.enabled (include "catena.bus.external" .) -}}
{{- fail "both nats.enabled and bus.url or bus.existingSecret are set; set nats.enabled=false to use an outside NATS" -}}
{{- end -}}
{{- if not (or .Values.nats.enabled (include "catena.bus.external" .)) -}}
{{- fail "no event broker: set nats.enabled=true, or bus.url, or bus.existingSecret" -}}
{{- end -}}
{{- if not (or .Values.models.existingClaim .Values.models.image.repository) -}}
{{- fail "no model files: set models.existingClaim or models.image.repository" -}}
{{- end -}}
{{- $facts := include "catena.facts" . | fromYaml -}}
{{- $longest := int (.Values.rooms.gateway.config.timeout_s | default 120) -}}
{{- range $name, $room := .Values.rooms -}}
{{- $of := dict "root" $ "name" $name "room" $room "facts" (index $facts $name) -}}
{{- $many := or (gt (int $room.replicas) 1) $room.autoscaling.enabled -}}
{{- if and $many (include "catena.room.stateful" $of) -}}
{{- fail (printf "rooms.%s keeps state on a disk of its own and runs once; %s" $name (ternary "set replicas to 1" "set sql.url to use PostgreSQL, or replicas to 1" (index $facts $name).disk)) -}}
{{- end -}}
{{- if and (index $facts $name).streams (lt (int $room.terminationGracePeriodSeconds) (add $longest $.Values.preStopSeconds)) -}}
{{- fail (printf "rooms.%s.terminationGracePeriodSeconds=%d would cut streams: use at least rooms.gateway.config.timeout_s (%d) + preStopSeconds (%d)" $name (int $room.terminationGracePeriodSeconds) $longest (int $.Values.preStopSeconds)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
