{{- define "connector.name" -}}
{{- .Values.env.nodeName | default "iot-edge-connector-hub0" -}}
{{- end }}

{{- define "connector.selector" -}}
app.kubernetes.io/name: iot-edge-connector
app.kubernetes.io/instance: {{ include "connector.name" . }}
{{- end }}

{{- define "connector.labels" -}}
{{ include "connector.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "connector.metadata" -}}
name: {{ include "connector.name" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "connector.labels" . | nindent 2 }}
{{- end }}

{{- define "connector.nodes" -}}
{{- $names := list -}}
{{- range .Values.hubs -}}
{{- $names = append $names (required "each entry of hubs needs a nodeName" .nodeName) -}}
{{- end -}}
{{- if not $names -}}{{- $names = list (include "connector.name" .) -}}{{- end -}}
{{- toJson $names -}}
{{- end }}

{{- define "connector.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "connector.subjects" -}}
- kind: ServiceAccount
  name: {{ include "connector.name" . }}
  namespace: {{ .Release.Namespace }}
{{- end }}
