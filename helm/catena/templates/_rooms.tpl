{{/*
What is true of a room whatever the values say: whom it calls (its network policy), whether it reads model files,
whether it keeps more than SQL on its own disk, whether an answer streams through it (its grace), and which halves of
the signing key it gets.
*/}}
{{- define "catena.facts" -}}
gateway: {calls: [router, executor, adapters, learner, memory, features], models: false, disk: false, streams: true}
router: {calls: [executor, adapters, memory], models: true, disk: false, streams: false}
executor: {calls: [adapters, memory, features], models: true, disk: false, streams: true}
adapters: {calls: [], models: true, disk: true, streams: true, signing: [signing.pub]}
trainer: {calls: [adapters], models: true, disk: true, streams: false, signing: [signing.pem, signing.pub]}
memory: {calls: [], models: true, disk: true, streams: false}
features: {calls: [], models: false, disk: false, streams: false}
learner: {calls: [trainer, adapters, router, executor], models: false, disk: false, streams: false}
{{- end -}}

{{/* "true" when the room needs a volume of its own: SQLite lives there, or more than SQL does. */}}
{{- define "catena.room.stateful" -}}
{{- if or .facts.disk (not (include "catena.sql.external" .root)) -}}true{{- end -}}
{{- end -}}

{{- define "catena.sql.external" -}}
{{- if or .Values.sql.url .Values.sql.existingSecret -}}true{{- end -}}
{{- end -}}

{{- define "catena.bus.external" -}}
{{- if or .Values.bus.url .Values.bus.existingSecret -}}true{{- end -}}
{{- end -}}

{{/* Where the room listens (its own address) and whom it can call. */}}
{{- define "catena.room.addresses" -}}
{{ .name }}: {{ printf "%s:50051" .root.Values.listen | quote }}
{{- range $other := .facts.calls }}
{{ $other }}: {{ printf "%s-%s:50051" (include "catena.fullname" $.root) $other | quote }}
{{- end }}
{{- end -}}

{{/* The room's section: what the chart decides, then what the user sets. */}}
{{- define "catena.room.section" -}}
{{- $given := dict -}}
{{- if eq .name "gateway" -}}
{{- $given = dict "host" (trimAll "[]" .root.Values.listen) "port" 8080 -}}
{{- end -}}
{{- if eq .name "adapters" -}}
{{- $given = dict "trusted_keys" "/etc/catena-trusted" "device" (ternary "cuda" "cpu" (gt (int .room.gpu.count) 0)) -}}
{{- end -}}
{{- toYaml (mergeOverwrite $given .room.config) -}}
{{- end -}}

{{/* The whole catena.yaml of one room. */}}
{{- define "catena.room.config" -}}
{{- $decided := dict "home" "/var/lib/catena" "embedding" "/models/embed" "addresses" (include "catena.room.addresses" . | fromYaml) -}}
{{- $_ := set $decided .name (include "catena.room.section" . | fromYaml) -}}
{{- $house := mergeOverwrite (deepCopy .root.Values.config) $decided -}}
{{- toYaml $house -}}
{{- end -}}
