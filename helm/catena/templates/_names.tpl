{{/* Names and labels. Every helper for a room takes dict "root" "name" "room" "facts". */}}

{{- define "catena.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "catena.room.fullname" -}}
{{- printf "%s-%s" (include "catena.fullname" .root) .name -}}
{{- end -}}

{{- define "catena.selector" -}}
app.kubernetes.io/name: catena
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .name }}
{{- end -}}

{{- define "catena.labels" -}}
{{ include "catena.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: catena
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{/* An image: registry/repository, by digest if one is given, else by tag. Takes dict "root" "image" "repository". */}}
{{- define "catena.image" -}}
{{- $repository := .image.repository | default .repository -}}
{{- $registry := .image.registry | default .root.Values.image.registry -}}
{{- $path := ternary (printf "%s/%s" $registry $repository) $repository (ne $registry "") -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $path .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $path (.image.tag | default .root.Values.image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "catena.room.image" -}}
{{- include "catena.image" (dict "root" .root "image" .room.image "repository" (printf "catena-%s" .name)) -}}
{{- end -}}

{{- define "catena.secretName" -}}
{{- .Values.auth.existingSecret | default (printf "%s-auth" (include "catena.fullname" .)) -}}
{{- end -}}
